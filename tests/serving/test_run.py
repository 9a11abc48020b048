"""A process that serves: it is told to stop, cannot load its model, or finds its port in use."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests import ROOT

PROGRAM = """
import sys

from e2rank_st import E2Rank
from e2rank_st.serving.app import create_app
from e2rank_st.serving.run import run


def load():
    model = E2Rank({folder!r}, device="cpu")

    def hold(*_):
        print("begun", flush=True)
        sys.stdin.readline()

    model[0].register_forward_pre_hook(hold)
    return model, None


run(lambda on_failure: create_app(load, on_failure=on_failure), "127.0.0.1", {port}, 30)
"""


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def test_sigterm_in_the_middle_of_a_request(checkpoint):
    """Guards against a request that is lost when a server is replaced, and one that is let in after the signal."""
    port = free_port()
    code = textwrap.dedent(PROGRAM).format(folder=str(checkpoint), port=port)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ, text=True
    )
    assert process.stdin and process.stdout
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        try:
            wait_for_health(client, process)
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(client.post, "/v1/embeddings", json={"input": "a"})
                assert process.stdout.readline() == "begun\n"
                process.send_signal(signal.SIGTERM)
                threading.Event().wait(0.3)
                with pytest.raises(httpx.ConnectError):
                    httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
                process.stdin.write("\n")
                process.stdin.flush()
                assert answer.result(60).status_code == 200
            assert process.wait(60) == -signal.SIGTERM
        finally:
            process.kill()
            process.communicate()


def wait_for_health(client: httpx.Client, process: subprocess.Popen) -> None:
    for _ in range(6000):
        assert process.poll() is None, "the server has ended"
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.ConnectError:
            pass
        threading.Event().wait(0.05)
    pytest.fail("the server did not get ready")


def test_loading_fails():
    """Guards against a server that goes on without a model, and an error that its thread keeps."""
    from e2rank_st.serving.app import create_app
    from e2rank_st.serving.run import run

    def load():
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        run(lambda on_failure: create_app(load, on_failure=on_failure), "127.0.0.1", free_port(), 1)


def test_a_port_in_use(tiny):
    """Guards against an exit without a word that the port is the reason."""
    from e2rank_st.serving.app import create_app
    from e2rank_st.serving.run import run

    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen()
        port = place.getsockname()[1]
        with pytest.raises(OSError, match=f"Cannot serve at 127.0.0.1:{port}. Is the port in use"):
            run(lambda on_failure: create_app(lambda: (tiny, None), on_failure=on_failure), "127.0.0.1", port, 1)
