"""A model → how the time and memory of a ranking grow with what is ranked, and how fast a collection is embedded."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import tqdm

from e2rank_st.benchmarks.meter import Meter, memory_in_use, product_rate, synchronize
from e2rank_st.console import markdown_table
from e2rank_st.model import E2Rank
from e2rank_st.provenance import environment
from e2rank_st.search.index import SearchIndex

__all__ = ["CANDIDATES", "CHARACTERS", "Point", "Rate", "measure", "tables"]

CANDIDATES = (100, 1_000, 10_000, 100_000)
CHARACTERS = (1_000, 10_000, 100_000, 1_000_000)
QUERY = "which passage"
OTHERS = 19  # documents beside the long one
PROCESSES = 2
REPEAT, ENOUGH = 5, 10.0  # calls, or seconds; the median counts


@dataclass(frozen=True)
class Point:
    """The cost of a ranking.

    Attributes:
        grows: What grows: stored candidates, or characters of a document.
        size: How many there are.
        milliseconds: Median of some calls.
        peak_bytes: Most memory beyond what there was before the calls; None where the device does not tell.
    """

    grows: str
    size: int
    milliseconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Rate:
    """How fast documents become vectors.

    Attributes:
        way: What embeds them.
        documents: Their number.
        tokens: Their tokens, without padding.
        seconds: For all.
        of_floor: Share of the rate of a matrix product that is reached.
    """

    way: str
    documents: int
    tokens: int
    seconds: float
    of_floor: float


def measure(model: E2Rank, documents: Sequence[str], *, show_progress_bar: bool = False) -> dict[str, Any]:
    """Rank more and more candidates and longer and longer documents, and embed a collection.

    Args:
        model: The model.
        documents: The collection's documents, all different; the others are made of the first ones.
        show_progress_bar: Whether to show bars.

    Returns:
        ``model``, ``environment``, ``points`` and ``rates``, as JSON can hold them.
    """
    runs = [*_candidates(model), *_characters(model, documents)]
    bar = tqdm(runs, desc="sizes", unit="size", disable=not show_progress_bar)
    points = [_point(model, grows, size, run) for grows, size, run in bar]
    return {
        "model": model.name.rpartition("/")[2],  # never a path
        "environment": environment(model.device),
        "points": [asdict(point) for point in points],
        "rates": [asdict(rate) for rate in _rates(model, list(documents), show_progress_bar)],
    }


def _candidates(model: E2Rank) -> Iterator[tuple[str, int, Callable[[], object]]]:
    draw = np.random.default_rng(0)
    dimension = model.get_embedding_dimension() or 0
    for size in CANDIDATES:
        vectors = draw.standard_normal((size, dimension), np.float32)
        texts = [f"passage {number}" for number in range(size)]
        run = partial(model.rerank, QUERY, texts, document_embeddings=vectors, show_progress_bar=False)
        yield "stored candidates", size, run


def _characters(model: E2Rank, documents: Sequence[str]) -> Iterator[tuple[str, int, Callable[[], object]]]:
    whole = " ".join(documents)
    whole *= -(-max(CHARACTERS) // len(whole))
    for long_documents in ("cut", "passages"):
        for size in CHARACTERS:
            texts = [whole[:size], *documents[:OTHERS]]
            run = partial(model.rerank, QUERY, texts, long_documents=long_documents, show_progress_bar=False)
            yield f"characters of a document, {long_documents}", size, run


def _point(model: E2Rank, grows: str, size: int, run: Callable[[], object]) -> Point:
    run()
    before = memory_in_use(model.device)
    seconds: list[float] = []
    while len(seconds) < REPEAT and sum(seconds) < ENOUGH:
        seconds.append(_seconds(model, run))
    peak = memory_in_use(model.device, peak=True)
    return Point(
        grows,
        size,
        milliseconds=round(1000 * statistics.median(seconds), 2),
        peak_bytes=None if peak is None or before is None else peak - before,
    )


def _seconds(model: E2Rank, run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    synchronize(model.device)
    return time.perf_counter() - start


def _rates(model: E2Rank, documents: list[str], bar: bool) -> Iterator[Rate]:
    """Embed a collection in one process, in several, and into an index on disk."""
    rate = max(product_rate(model.device, next(model.parameters()).dtype) for _ in range(REPEAT))
    model.encode_document(documents[:32])
    seconds: dict[str, float] = {}
    with Meter([next(model.children())]) as meter:
        seconds["encode_document"] = _seconds(model, lambda: model.encode_document(documents, show_progress_bar=bar))
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "index"
        seconds["SearchIndex.create"] = _seconds(
            model, lambda: SearchIndex.create(place, model, documents, show_progress_bar=bar)
        )
    with _settled_processes():
        pool = model.start_multi_process_pool([str(model.device)] * PROCESSES)
    try:
        model.encode_document(documents[: 64 * PROCESSES], pool=pool)  # the processes load
        seconds[f"encode_document, {PROCESSES} processes"] = _seconds(
            model, lambda: model.encode_document(documents, pool=pool)
        )
    finally:
        model.stop_multi_process_pool(pool)
    for way, took in seconds.items():
        yield Rate(way, len(documents), meter.tokens, round(took, 2), round(meter.flops / rate / took, 3))


@contextmanager
def _settled_processes() -> Iterator[None]:
    """Let processes that start share the threads, and keep their memory, as docs/speed.md advises."""
    before = dict(os.environ)
    os.environ |= dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**30))
    os.environ["OMP_NUM_THREADS"] = str(max(torch.get_num_threads() // PROCESSES, 1))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def tables(found: Mapping[str, Any]) -> str:
    """Write what :func:`measure` found as tables in Markdown."""
    points = [Point(**point) for point in found["points"]]
    rows = [
        (
            point.grows, f"{point.size:,}", f"{point.milliseconds:,.0f}",
            "" if point.peak_bytes is None else f"{point.peak_bytes / 1e6:,.0f}",
        )
        for point in points
    ]  # fmt: skip
    speeds = [
        (
            rate.way, f"{rate.documents:,}", f"{rate.tokens:,}", f"{rate.tokens / rate.seconds:,.0f}",
            f"{rate.of_floor:.0%}",
        )
        for rate in (Rate(**rate) for rate in found["rates"])
    ]  # fmt: skip
    return "\n\n".join(
        (
            f"`{found['model']}`, {found['environment']['hardware']['device']}:",
            markdown_table(("what grows", "size", "ms", "memory, MB"), rows, labels=1),
            markdown_table(("", "documents", "tokens", "tokens a second", "of the floor"), speeds, labels=1) + "\n",
        )
    )
