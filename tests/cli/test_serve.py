"""The command e2rank serve: options, and processes as a user starts them."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

for library in ("fastapi", "uvicorn", "prometheus_client", "cachetools"):
    pytest.importorskip(library)

import httpx  # noqa: E402

from e2rank_st import E2Rank, SearchIndex  # noqa: E402
from e2rank_st.cli.app import app  # noqa: E402
from e2rank_st.loading import load_model  # noqa: E402
from e2rank_st.serving.app import Batching, Limits  # noqa: E402
from tests import ROOT  # noqa: E402

QUERY = "how long do fleas live"


@pytest.fixture(scope="module")
def model(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """What the command hands to the server, which does not start."""
    found = SimpleNamespace()

    def create(*values: Any) -> str:
        found.load, found.limits, found.batching, found.key, found.on_failure = values
        return "application"

    def run(make: Any, host: str, port: int, timeout: float) -> None:
        found.application, found.place, found.timeout = make(print), (host, port), timeout

    package = logging.getLogger("e2rank_st")
    level, handlers = package.level, list(package.handlers)
    monkeypatch.setattr("e2rank_st.serving.app.create_app", create)
    monkeypatch.setattr("e2rank_st.serving.run.run", run)
    monkeypatch.delenv("E2RANK_API_KEY", raising=False)
    yield found
    package.setLevel(level)
    package.handlers[:] = handlers


def invoke(*arguments: str):
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    return result.stderr


def test_defaults(asked):
    """Guards against a server that everyone reaches by default, or that keeps texts."""
    said = invoke()
    assert "serving at http://127.0.0.1:8000" in said and "warning" not in said
    assert (asked.application, asked.place) == ("application", ("127.0.0.1", 8000))
    assert (asked.key, asked.batching.cache_bytes) == (None, 0)
    assert (asked.limits.max_body_bytes, asked.limits.max_documents) == (16_000_000, 2_000)


def test_options(asked, monkeypatch: pytest.MonkeyPatch):
    """Guards against an option that arrives in a different unit, or not at all."""
    monkeypatch.setenv("E2RANK_API_KEY", "secret")
    limits = "--max-documents 5 --max-tokens 6 --max-body-mb 0.5 --max-queue 7 --timeout 8"
    batching = "--batch-tokens 1 --batch-wait-ms 0 --cache-mb 2"
    said = invoke(*f"--host ::1 --port 9000 {limits} {batching}".split())
    assert "http://[::1]:9000" in said and "secret" not in said
    assert asked.limits == Limits(500_000, 5, 6, 7, 8)
    assert asked.timeout == 8
    assert asked.batching == Batching(1, 0, 2_000_000)
    assert asked.key == "secret"


@pytest.mark.parametrize(("host", "key", "warns"), [("0.0.0.0", "", True), ("0.0.0.0", "k", False), ("::1", "", False)])
def test_a_warning_without_a_key(asked, monkeypatch: pytest.MonkeyPatch, host: str, key: str, warns: bool):
    """Guards against an open server that nobody noticed; an empty key is none."""
    monkeypatch.setenv("E2RANK_API_KEY", key)
    assert ("Set E2RANK_API_KEY" in invoke("--host", host)) == warns


def test_the_model_of_the_index(asked, model: str, facts, tmp_path: Path):
    """Guards against an index that is searched with a model that did not make it."""
    place = str(tmp_path / "facts.lance")
    SearchIndex.create(place, load_model(model, device="cpu"), facts)
    invoke(place, "--device", "cpu")
    encoder, index = asked.load()
    assert (encoder.name, len(index)) == (model, len(facts))
    invoke("--model", model, "--device", "cpu")
    encoder, index = asked.load()
    assert (encoder.name, index) == (model, None)


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "e2rank_st.cli", "serve", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def test_a_process(model: str, tiny, facts, tmp_path: Path):
    """Guards against a command that serves in tests only: index, key, answers, and a quiet end."""
    place, port = str(tmp_path / "facts.lance"), str(free_port())
    index = SearchIndex.create(place, load_model(model, device="cpu"), facts)
    process = start(place, "--port", port, "--device", "cpu", "-v", E2RANK_API_KEY="k")
    headers = {"authorization": "Bearer k"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, trust_env=False) as client:
        try:
            for _ in range(1200):
                assert process.poll() is None
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.ConnectError:
                    pass
                threading.Event().wait(0.1)
            found = client.post("/v1/search", json={"query": QUERY, "top_k": 3}).json()["results"]
            ranked = client.post("/rerank", json={"query": QUERY, "documents": facts}).json()["results"]
            assert client.post("/v1/search", json={}, headers={"authorization": "Bearer x"}).status_code == 401
            process.send_signal(signal.SIGTERM)
            out, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert [hit["id"] for hit in found] == [hit["id"] for hit in index.search(QUERY, top_k=3)]
    assert [hit["index"] for hit in ranked] == [hit["corpus_id"] for hit in tiny.rerank(QUERY, facts)]
    assert process.returncode == -signal.SIGTERM
    assert out == "" and "info: Ready: model" in said and "Traceback" not in said
    assert QUERY not in said and facts[0] not in said


@pytest.mark.parametrize("reason", ["no model", "port"])
def test_it_cannot_start(reason: str, model: str, tmp_path: Path):
    """Guards against a process that stays without a model, and a traceback instead of a reason."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1] if reason == "port" else free_port())
        arguments = {
            "no model": ("--model", str(tmp_path / "none")),
            "port": ("--model", model),
        }
        process = start(*arguments[reason], "--port", port)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    message = [line for line in said.splitlines() if line.startswith("e2rank: error: ")]
    assert len(message) == 1 and "Traceback" not in said, said
    told = {"no model": "none", "port": f"127.0.0.1:{port}. Is the port in use"}
    assert told[reason] in message[0]
