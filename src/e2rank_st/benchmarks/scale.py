"""Numbers of vectors → what an index of them takes: time to write and to search, recall, disk and memory.

The vectors are made from those of the standard library's docstrings: each is a mix of two of them and noise, so that it
has near ones as in a real collection. Search is LanceDB's part of it; embedding is not in
these figures.

Axes: N documents, B queries, D dimensions.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from e2rank_st.console import markdown_table
from e2rank_st.model import E2Rank
from e2rank_st.provenance import environment
from e2rank_st.search.exact import nearest
from e2rank_st.search.lance import LanceStore
from e2rank_st.search.records import Record
from e2rank_st.search.store import Entry, VectorIndex
from e2rank_st.search.vectors import Matrix, unit_rows

__all__ = ["Scale", "measure", "real_vectors", "table"]

KINDS: tuple[VectorIndex, ...] = ("exact", "int8", "rabitq")
QUERIES, COUNT = 100, 100  # B, and the documents that a search returns
TOGETHER = 10_000  # documents of a write
REAL = 1_500  # docstrings that are embedded
SHARE, NOISE = 0.5, 0.6  # of the second vector, and the length of the noise, in a mix


@dataclass(frozen=True)
class Scale:
    """One way of searching one number of vectors.

    Attributes:
        documents: N.
        vector_index: As for :meth:`~e2rank_st.search.index.SearchIndex.optimize`.
        recall: Mean share of the true nearest 100 that a search returns.
        milliseconds: Median time of a search for 100 documents, with their texts and vectors.
        build_seconds: Time to make the index of the vectors.
        write_seconds: Time to write all documents.
        data_bytes: Size of texts and vectors on disk.
        index_bytes: Size of the index of the vectors.
        peak_bytes: Largest memory of the process so far; sizes are measured in ascending order.
    """

    documents: int
    vector_index: str
    recall: float
    milliseconds: float
    build_seconds: float
    write_seconds: float
    data_bytes: int
    index_bytes: int
    peak_bytes: int


def real_vectors(model: E2Rank) -> Matrix:
    """The vectors of some docstrings, (n, D)."""
    from e2rank_st.data.docstrings import collect

    texts = [part.document for part in collect()]
    return unit_rows(model.encode_document(texts[:: max(1, len(texts) // REAL)], show_progress_bar=True))


def measure(real: Matrix, sizes: Sequence[int], folder: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Write and search each number of vectors in each way.

    Args:
        real: Vectors to make others from, (n, D), of unit length.
        sizes: Numbers of documents.
        folder: Where the indexes are written, and removed again; by default the system's folder for such files.
        seed: Of the mixes.

    Returns:
        ``environment`` and ``results``, as JSON can hold them.
    """
    rows: list[Scale] = []
    for size in sorted(sizes):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            rows += _measured(real, size, Path(place) / "index", seed)
    return {"environment": environment(torch.device("cpu")), "results": [asdict(row) for row in rows]}


def _measured(real: Matrix, size: int, place: Path, seed: int) -> Iterator[Scale]:
    queries = next(_mixed(real, QUERIES, seed + 1))
    store = LanceStore.create(str(place), {}, real.shape[1], dtype="float16", passages=False)
    best = [np.empty((0, 2)) for _ in queries]  # for each query rows and cosines
    seconds, first = 0.0, 0
    for part in _mixed(real, size, seed):
        begin = time.perf_counter()
        store.add(
            [Entry(Record(f"d{first + row}", f"text {first + row}"), part[row : row + 1]) for row in range(len(part))]
        )
        seconds += time.perf_counter() - begin
        for query, near in enumerate(nearest(queries, part, COUNT)):
            found = np.concatenate([best[query], np.stack([near.rows + first, near.scores], axis=1)])
            best[query] = found[np.argsort(-found[:, 1], kind="stable")[:COUNT]]
        first += len(part)
    store.optimize("exact")
    truth = [{f"d{int(row)}" for row in found[:, 0]} for found in best]
    data = _size(place)
    for kind in KINDS:
        begin, before = time.perf_counter(), _size(place)
        store.optimize(kind)
        build = time.perf_counter() - begin
        times, shares = [], []
        for query, expected in zip(queries, truth, strict=True):
            begin = time.perf_counter()
            (found_here,) = store.search([""], query[None], COUNT, "vector", None)
            times.append(time.perf_counter() - begin)
            shares.append(len({hit.entry.record.id for hit in found_here} & expected) / len(expected))
        yield Scale(
            documents=size,
            vector_index=kind,
            recall=round(statistics.mean(shares), 4),
            milliseconds=round(1000 * statistics.median(times), 2),
            build_seconds=round(build if kind != "exact" else 0.0, 2),
            write_seconds=round(seconds, 2),
            data_bytes=data,
            index_bytes=0 if kind == "exact" else _size(place) - before,
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
    shutil.rmtree(place)


def _mixed(real: Matrix, size: int, seed: int) -> Iterator[Matrix]:
    """Make vectors from real ones, some thousand at a time."""
    draw = np.random.default_rng(seed)
    for start in range(0, size, TOGETHER):
        one, other = draw.integers(len(real), size=(2, min(TOGETHER, size - start)))
        noise = draw.normal(size=(len(one), real.shape[1])) * (NOISE / real.shape[1] ** 0.5)
        yield unit_rows(real[one] + SHARE * real[other] + noise)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table(found: Mapping[str, Any]) -> str:
    """Write what :func:`measure` found as a table in Markdown."""
    rows = [Scale(**row) for row in found["results"]]
    header = (
        "vector_index", "documents", "recall@100", "ms a search", "build, s", "write, s", "data, MB", "index, MB",
        "peak memory, MB",
    )  # fmt: skip
    cells = [
        (
            f"`{row.vector_index}`", f"{row.documents:,}", f"{100 * row.recall:.1f}", f"{row.milliseconds:.1f}",
            f"{row.build_seconds:.1f}", f"{row.write_seconds:.1f}", f"{row.data_bytes / 1e6:,.0f}",
            f"{row.index_bytes / 1e6:,.1f}", f"{row.peak_bytes / 1e6:,.0f}",
        )
        for row in rows
    ]  # fmt: skip
    return markdown_table(header, cells, labels=1) + "\n"
