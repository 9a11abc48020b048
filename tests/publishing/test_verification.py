"""Verification: a card's Python runs for those who ask for it, and can neither reach the network nor stay."""

import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from e2rank_st import E2Rank
from e2rank_st.publishing import Build, sandbox, verification
from e2rank_st.publishing.card.page import Card
from e2rank_st.publishing.contents import File
from e2rank_st.publishing.probe import TASKS
from e2rank_st.publishing.verification import check_card

isolated = pytest.mark.skipif(bool(sandbox.why_no_namespace()), reason="this system gives no namespaces")
CONNECT = "import socket; socket.create_connection(('127.0.0.1', {port}), 2).sendall(b'secret')"
# Ways to a process that the audit hook of this one does not see.
CARDS = {
    "itself": "{connect}",
    "a subprocess": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', {connect!r}], check=True)",
    "a shell": "import os\nassert os.system('bash -c \\'echo x >/dev/tcp/127.0.0.1/{port}\\'') == 0",
    "a fork": "import os\nif os.fork() == 0:\n    {connect}\nassert os.wait()[1] == 0",
    "the other namespace": "import subprocess, sys\n"
    "subprocess.run(['nsenter', '-t', '{pid}', '-n', sys.executable, '-c', {connect!r}], check=True)",
}


def card(*blocks: str) -> Build:
    text = "".join(f"```python\n{block}\n```\n" for block in blocks)
    files = {"main": [File("model.safetensors", 10, "", "")]}
    return Build(Path("nowhere"), "org/e2rank", {"main": Card(f"---\na: b\n---\n{text}", {})}, files)


@pytest.fixture
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """A socket of this machine that keeps what it hears."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                heard.append(connection.recv(100))

        threading.Thread(target=listen, daemon=True).start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)


@isolated
@pytest.mark.parametrize("way", CARDS)
def test_no_network_for_a_card_and_its_children(listener, way: str):
    """Guards against a card that sends this machine's files away, through a process that it starts."""
    port, heard = listener
    connect = CONNECT.format(port=port)
    exec(connect)  # the premise: from here it works
    (check,) = check_card(card(CARDS[way].format(connect=connect, port=port, pid=os.getpid())), run_card=True)
    assert check.problem
    assert len(heard) == 1, "the premise only"


def test_a_strangers_card_is_not_run(tmp_path: Path, monkeypatch):
    """Guards against Python of a downloaded README that runs because it is there, or where it cannot be shut in."""
    harm = f"open({str(tmp_path / 'harm')!r}, 'w').write('x')"
    build = card(harm, f"import e2rank_st\n{harm}")
    assert [check.note for check in check_card(build, run_card=False)] == ["not run; --run-card runs it"] * 2
    monkeypatch.setattr(verification, "why_no_namespace", lambda: "this system gives none (Operation not permitted)")
    for check in check_card(build, run_card=True):
        assert check.note.startswith("not run, since this system gives none (Operation not permitted), so")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    if not sandbox.why_no_namespace():
        assert [check.problem for check in check_card(build, run_card=True)] == ["", ""]
        assert (tmp_path / "harm").is_file(), "the premise: it would have done harm"


def test_blocks_in_the_metadata_are_none():
    """Guards against Python in a value of a stranger's YAML, which our own card of the other revision repeats."""
    text = "---\nlicense: |\n```python\n1 / 0\n```\n---\n```python\nx = 1\n```\n"
    assert Card(text, {}).blocks == ["x = 1\n"]


@isolated
@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("while True:\n    pass", "did not end within 2 s"),
        ("import time\ntime.sleep(1e6)", "did not end within 2 s"),
        ("import os, time\nif os.fork():\n    os._exit(0)\nos.setsid()\ntime.sleep(1e6)", "ended before"),
        # As many as can do no harm here.
        ("import os, time\nfor _ in range(9):\n    os.fork()\ntime.sleep(9)", "it took more memory than|it started"),
        ("x = []\nwhile True:\n    x.append(bytearray(10**7))", "memory than the 0.3 GiB that it may have"),
        ("x = bytearray(10**10)", "needs more memory than the 0.3 GiB that it may have: MemoryError"),
        (
            "import subprocess, sys\none = [sys.executable, '-c', 'x = b\"x\" * 10**8; input()']\n"
            "many = [subprocess.Popen(one, stdin=subprocess.PIPE) for _ in range(9)]\nmany[0].wait()",
            "took more memory than the 0.3 GiB",
        ),
        ("import sys\nsys.exit()", "ended before the last task"),
        ("import os\nos.write(2, b'x' * 10**6)\nraise SystemExit('bye')", "bye"),
    ],
)
def test_a_card_that_takes_too_much(monkeypatch, tmp_path: Path, block: str, problem: str):
    """Guards against a card that holds the machine, or lives on in a process that it left behind."""
    monkeypatch.setattr(verification, "CARD_TIMEOUT", 2.0 if "did not" in problem else 30.0)
    monkeypatch.setattr(verification, "MEMORY", 3 * 10**8)
    alive = tmp_path / "alive"
    stays = f"""import os, time
if os.fork() == 0:
    os.setsid()
    while True:
        open({str(alive)!r}, "w").close()
        time.sleep(0.02)"""
    start = time.monotonic()
    (check,) = check_card(card(stays, block), run_card=True)
    assert re.search(problem, check.problem), check.problem
    assert time.monotonic() - start < 30
    alive.unlink(missing_ok=True)
    time.sleep(0.2)
    assert not alive.exists(), "no process is left"


def test_the_recipe_of_the_card(saved: Path, tiny: E2Rank, tmp_path: Path):
    """Guards against a folder on which others build a different prompt, and a check that does not see it."""
    prompt, vectors = verification._prompt(tiny)
    job = {"main": str(saved), "queries": ["a"], "documents": ["a b"], "prompt": prompt, "length": 1024}
    assert abs(np.array(TASKS["plain"](job)["listwise prompt"]) - vectors).max() < 1e-6
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "system"))
    with pytest.raises(RuntimeError, match="the listwise prompt has the token ids"):
        TASKS["plain"](job | {"main": str(folder)})
