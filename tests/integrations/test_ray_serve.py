"""Replicas of Ray Serve answer as the model does, also after one of them died."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from e2rank_st import E2Rank

ray = pytest.importorskip("ray")
pytest.importorskip("ray.serve", reason="needs the extra ray-serve", exc_type=ImportError)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a minute, or many beside other work: all are new processes
WAITS = {"RAY_raylet_start_wait_time_s": "240", "RAY_agent_register_timeout_ms": "240000"}

KEY = "key-of-the-tests"


def load(checkpoint: str, folder: str) -> tuple[E2Rank, None]:
    """A model, and a file that names the process that holds it."""
    model = E2Rank(checkpoint, device="cpu")
    Path(folder, str(os.getpid())).touch()
    return model, None


@pytest.fixture
def port(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    from ray import serve

    from e2rank_st.integrations.ray_serve import deployment

    for name, value in {**WAITS, "E2RANK_API_KEY": KEY}.items():  # the processes of Ray take them over
        monkeypatch.setenv(name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        app = deployment(
            partial(load, str(checkpoint), str(tmp_path)),
            num_replicas=2,
            health_check_period_s=1,
            ray_actor_options={"num_cpus": 0.5},
        )
        serve.run(app.bind())
        yield port
        serve.shutdown()
    finally:
        ray.shutdown()


def test_replicas(port: int, tiny: E2Rank, facts: list[str], tmp_path: Path):
    """Guards against replicas without a key, or of another model, and a dead one that is not replaced."""
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {KEY}"}
    expected = [hit["corpus_id"] for hit in tiny.rerank("how long do fleas live", facts)]

    def rank(_: object = None) -> list[int]:
        body = {"query": "how long do fleas live", "documents": facts}
        answer = httpx.post(f"{url}/v1/rerank", json=body, headers=headers, timeout=60)
        answer.raise_for_status()
        return [row["index"] for row in answer.json()["results"]]

    assert httpx.post(f"{url}/v1/rerank", json={"query": "a", "documents": []}).status_code == 401
    assert httpx.get(f"{url}/health").json()["status"] == "ready"
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(rank, range(24))) == [expected] * 24
    first = {path.name for path in tmp_path.iterdir()}
    assert len(first) == 2
    os.kill(int(min(first)), signal.SIGKILL)
    end = time.monotonic() + 300
    while len([*tmp_path.iterdir()]) < 3:
        assert time.monotonic() < end
        time.sleep(0.2)
    time.sleep(2)  # until the proxy knows it
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(rank, range(24))) == [expected] * 24
    hits = E2Rank.remote(url, tiny.name).rerank("how long do fleas live", facts)
    assert [hit["corpus_id"] for hit in hits] == expected
