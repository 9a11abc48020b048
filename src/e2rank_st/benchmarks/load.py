"""Clients and seconds → how a server answers mixed requests under load, with batching and without.

Two servers run in processes of their own. The one without batching gives each forward pass to one request. They take
turns at each number of clients, so that a machine whose speed drifts treats both alike. Every answer is compared with
a direct call of the model.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from e2rank_st.console import markdown_table
from e2rank_st.model import E2Rank
from e2rank_st.provenance import environment

__all__ = ["Load", "Request", "measure", "requests", "table"]

SERVERS = {"batching": (), "no batching": ("--batch-tokens", "1", "--batch-wait-ms", "0")}  # options of e2rank serve
NEAR = 1e-5  # most difference of a score or a value from that of a direct call
START_SECONDS = 120
QUERIES = ("how long do fleas live", "melting point of iron", "largest river of Europe", "why does bread rise")
WORDS = (
    "flea", "iron", "river", "bread", "yeast", "gravity", "moon", "water", "melts", "lives", "rises", "flows", "about",
    "hundred", "days", "degrees",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A request, and the numbers of its right answer.

    Attributes:
        kind: What it asks for.
        path: Path of the server.
        body: Its JSON.
        expected: Scores by document, (N,), or vectors, (N, D).
    """

    kind: str
    path: str
    body: bytes
    expected: np.ndarray


@dataclass(frozen=True)
class Load:
    """How one server answered a number of clients.

    Attributes:
        server: ``"batching"`` or ``"no batching"``.
        clients: Clients that ask at the same time, each again after its answer.
        requests: Answers that were right.
        wrong: Answers that were not, or did not come.
        throughput: Right answers a second.
        ratio: Throughput, divided by that of the server without batching; median of the turns.
        p50: Median time of an answer, in milliseconds.
        p95: 95 of 100 answers take no longer.
        p99: 99 of 100 answers take no longer.
        peak_bytes: Largest memory of the server so far.
    """

    server: str
    clients: int
    requests: int
    wrong: int
    throughput: float
    ratio: float
    p50: float
    p95: float
    p99: float
    peak_bytes: int


@dataclass
class _Turn:
    """The answers of a turn: milliseconds of the right ones."""

    times: list[float] = field(default_factory=list)
    wrong: int = 0
    seconds: float = 0.0

    @property
    def throughput(self) -> float:
        return len(self.times) / self.seconds


def requests(model: E2Rank, number: int = 24, documents: int = 10, seed: int = 0) -> list[Request]:
    """Draw requests in turn: rerank texts, rerank with stored vectors, and embed. Their answers are direct calls.

    Args:
        model: The model that the server has.
        number: Number of requests.
        documents: N.
        seed: Of the documents.
    """
    draw = np.random.default_rng(seed)
    found = []
    for place in range(number):
        query = f"{QUERIES[place % len(QUERIES)]} {place}"
        texts = [" ".join(draw.choice(WORDS, draw.integers(5, 60))) for _ in range(documents)]
        vectors = np.asarray(model.encode_document(texts, show_progress_bar=False), np.float32)
        body: dict[str, Any] = {"query": query, "documents": texts}
        if place % 3 == 2:
            plain = np.asarray(model.encode(texts, prompt="", show_progress_bar=False), np.float32)
            unit = plain / np.linalg.norm(plain, axis=1, keepdims=True)
            found.append(Request("embed", "/v1/embeddings", json.dumps({"input": texts}).encode(), unit))
            continue
        stored = {} if place % 3 == 0 else {"document_embeddings": vectors.tolist()}
        ranking = model.rerank(query, texts, document_embeddings=vectors if stored else None, show_progress_bar=False)
        scores = {hit["corpus_id"]: (1 + hit["score"]) / 2 for hit in ranking}
        expected = np.array([scores[row] for row in range(documents)])
        kind = "rerank stored vectors" if stored else "rerank"
        found.append(Request(kind, "/v1/rerank", json.dumps(body | stored).encode(), expected))
    return found


def measure(
    model: str,
    given: Sequence[Request],
    *,
    clients: Sequence[int] = (1, 8, 64),
    seconds: float = 20.0,
    turns: int = 3,
) -> dict[str, Any]:
    """Ask both servers in turns.

    Args:
        model: A name for ``e2rank serve --model``.
        given: What clients ask for; each begins at a different place.
        clients: Numbers of clients.
        seconds: Of each turn of each server.
        turns: Counted turns of each number of clients; a short one before them is not counted.

    Returns:
        ``environment`` and ``results``, as JSON can hold them.

    Raises:
        OSError: A server does not start.
    """
    rows: list[Load] = []
    with serving(model, SERVERS["batching"]) as one, serving(model, SERVERS["no batching"]) as other:
        servers = dict(zip(SERVERS, (one, other), strict=True))
        for count in clients:
            for port, _ in servers.values():
                _turn(port, given, count, min(seconds, 1.0))
            found: dict[str, list[_Turn]] = {name: [] for name in servers}
            for _ in range(turns):
                for name, (port, _) in servers.items():
                    found[name].append(_turn(port, given, count, seconds))
            plain = [turn.throughput for turn in found["no batching"]]
            rows += [_row(name, count, found[name], plain, servers[name][1]) for name in servers]
    about = {"model": model, "seconds": seconds, "turns": turns, "requests": len(given)}
    return {"environment": environment(torch.device("cpu")), **about, "results": [asdict(row) for row in rows]}


def _row(name: str, clients: int, turns: list[_Turn], plain: list[float], process: int) -> Load:
    times = [time for turn in turns for time in turn.times] or [float("nan")]
    p50, p95, p99 = (round(float(np.percentile(times, share)), 1) for share in (50, 95, 99))
    ratios = [turn.throughput / other for turn, other in zip(turns, plain, strict=True) if other]
    return Load(
        server=name,
        clients=clients,
        requests=sum(len(turn.times) for turn in turns),
        wrong=sum(turn.wrong for turn in turns),
        throughput=round(sum(len(turn.times) for turn in turns) / sum(turn.seconds for turn in turns), 2),
        ratio=round(statistics.median(ratios), 2) if ratios else 0.0,
        p50=p50,
        p95=p95,
        p99=p99,
        peak_bytes=_peak_bytes(process),
    )


def _turn(port: int, given: Sequence[Request], clients: int, seconds: float) -> _Turn:
    """Let clients ask for some seconds; the answers of their last requests count, too."""
    turn, lock = _Turn(), threading.Lock()
    begin = time.perf_counter()

    def ask(place: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        for request in itertools.islice(itertools.cycle(given), place, None):
            if time.perf_counter() - begin >= seconds:
                break
            start = time.perf_counter()
            right = _is_right(request, connection)
            with lock:
                turn.wrong += not right
                turn.times += [1000 * (time.perf_counter() - start)] * right
        connection.close()

    threads = [threading.Thread(target=ask, args=(place % len(given),)) for place in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    turn.seconds = time.perf_counter() - begin
    return turn


def _is_right(request: Request, connection: http.client.HTTPConnection) -> bool:
    """Ask, and compare the answer with the direct call."""
    try:
        connection.request("POST", request.path, request.body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError):
        connection.close()
        return False
    if answer.status != 200:
        return False
    if "data" in body:
        values = np.array([row["embedding"] for row in body["data"]])
    else:
        scores = {row["index"]: row["relevance_score"] for row in body["results"]}
        values = np.array([scores[row] for row in sorted(scores)])
    return values.shape == request.expected.shape and bool(np.abs(values - request.expected).max() <= NEAR)


@contextmanager
def serving(model: str, options: Sequence[str]) -> Iterator[tuple[int, int]]:
    """A server in a process of its own; gives its port and the number of its process.

    Raises:
        OSError: It does not start; the message has what it said.
    """
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = int(place.getsockname()[1])
    command = [sys.executable, "-m", "e2rank_st.cli", "serve", "--model", model, "--device", "cpu", "--port", str(port)]
    variables = {name: value for name, value in os.environ.items() if name != "E2RANK_API_KEY"}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([*command, *options], env=variables, stdout=said, stderr=said)
        try:
            _wait(lambda: _is_ready(port), process)
            yield port, process.pid
        except TimeoutError as error:
            said.seek(0)
            raise OSError(f"The server did not start: {said.read()[-500:]}") from error
        finally:
            process.terminate()
            process.wait()


def _wait(is_ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while not is_ready():
        if process.poll() is not None or time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.1)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _peak_bytes(process: int) -> int:
    """Largest memory of a process so far; 0 where the system does not tell."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def table(found: Mapping[str, Any]) -> str:
    """Write what :func:`measure` found as a table in Markdown, with the machine below it."""
    rows, hardware = [Load(**row) for row in found["results"]], found["environment"]["hardware"]
    header = (
        "server", "clients", "answers", "wrong", "a second", "ratio", "p50, ms", "p95, ms", "p99, ms", "peak memory, MB"
    )  # fmt: skip
    cells = [
        (
            row.server, str(row.clients), f"{row.requests:,}", str(row.wrong), f"{row.throughput:.1f}",
            f"{row.ratio:.2f}", f"{row.p50:,.0f}", f"{row.p95:,.0f}", f"{row.p99:,.0f}", f"{row.peak_bytes / 1e6:,.0f}",
        )
        for row in rows
    ]  # fmt: skip
    how = f"turns of {found['seconds']:g} s, {found['turns']} for each row; clients on the same machine"
    machine = f"{hardware['device']}, {hardware['threads']} threads"
    return f"{markdown_table(header, cells, labels=1)}\n\n`{found['model']}` on {machine}; {how}.\n"
