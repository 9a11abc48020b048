"""Numbers of vectors → what an index of them takes: time to write and to search, recall, disk and memory.

The vectors are made from those of the standard library's docstrings: each is a mix of two of them and noise, so that it
has near ones as in a real collection. Search is LanceDB's part of it; embedding is not in
these figures.

Axes: N documents, B queries, D dimensions.
"""

from __future__ import annotations

import math
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import torch

from e2rank_st.console import markdown_table
from e2rank_st.model import E2Rank
from e2rank_st.provenance import environment
from e2rank_st.search.exact import nearest
from e2rank_st.search.lance import TABLE, LanceStore
from e2rank_st.search.records import Record
from e2rank_st.search.store import Entry, VectorIndex
from e2rank_st.search.vectors import Matrix, unit_rows

__all__ = ["Embedded", "Scale", "measure", "plan", "real_vectors", "table"]

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
        lookup_milliseconds: Median time to find 256 documents by their ids, as each write does first.
        build_seconds: Time to make the index of the vectors.
        write_seconds: Time to write all documents.
        data_bytes: Size of texts, vectors and index of words on disk.
        index_bytes: Size of the index of the vectors.
        peak_bytes: Largest memory of the process so far; sizes are measured in ascending order.
    """

    documents: int
    vector_index: str
    recall: float
    milliseconds: float
    lookup_milliseconds: float
    build_seconds: float
    write_seconds: float
    data_bytes: int
    index_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Embedded:
    """What it took to embed the texts that the vectors are made from.

    Attributes:
        documents: Their number.
        characters: Their length in all.
        tokens: Tokens that the model read.
        seconds: Time on all cores.
        cores: Their number.
    """

    documents: int
    characters: int
    tokens: int
    seconds: float
    cores: int


def real_vectors(model: E2Rank) -> tuple[Matrix, Embedded]:
    """Embed some docstrings: vectors (n, D), and what they took."""
    from e2rank_st.data.docstrings import collect

    texts = [part.document for part in collect()]
    texts = texts[:: max(1, len(texts) // REAL)]
    begin = time.perf_counter()
    vectors = unit_rows(model.encode_document(texts, show_progress_bar=True))
    seconds = round(time.perf_counter() - begin, 2)
    embedder = model.listwise.embedder()
    limit, known = embedder.limit("document"), embedder.ids("document", texts)
    tokens = sum(len(embedder.texts.with_special_tokens(ids, limit)) for ids in known)
    return vectors, Embedded(len(texts), sum(map(len, texts)), tokens, seconds, torch.get_num_threads())


def measure(
    real: Matrix, embedded: Embedded, sizes: Sequence[int], folder: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Write and search each number of vectors in each way.

    Args:
        real: Vectors to make others from, (n, D), of unit length.
        embedded: What they took.
        sizes: Numbers of documents.
        folder: Where the indexes are written, and removed again; by default the system's folder for such files.
        seed: Of the mixes.

    Returns:
        ``environment``, ``embedded`` and ``results``, as JSON can hold them.
    """
    rows: list[Scale] = []
    for size in sorted(sizes):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            rows += _measured(real, size, Path(place) / "index", seed)
    return {
        "environment": environment(torch.device("cpu")),
        "dimension": real.shape[1],
        "embedded": asdict(embedded),
        "results": [asdict(row) for row in rows],
    }


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
        begin = time.perf_counter()
        store.optimize(kind)
        build = time.perf_counter() - begin
        index_bytes = _size(place) - data
        times, shares, lookups = [], [], []
        for query, expected in zip(queries, truth, strict=True):
            begin = time.perf_counter()
            (found_here,) = store.search([""], query[None], COUNT, "vector", None)
            times.append(time.perf_counter() - begin)
            shares.append(len({hit.entry.record.id for hit in found_here} & expected) / len(expected))
        for ids in np.random.default_rng(seed).integers(size, size=(10, 256)):
            begin = time.perf_counter()
            store.get([f"d{id_}" for id_ in ids])
            lookups.append(time.perf_counter() - begin)
        yield Scale(
            documents=size,
            vector_index=kind,
            recall=round(statistics.mean(shares), 4),
            milliseconds=round(1000 * statistics.median(times), 2),
            lookup_milliseconds=round(1000 * statistics.median(lookups), 2),
            build_seconds=round(build if kind != "exact" else 0.0, 2),
            write_seconds=round(seconds, 2),
            data_bytes=data,
            index_bytes=index_bytes,
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
    """The bytes of the index as it is now, without its earlier versions, which LanceDB keeps for seven days."""
    table = lancedb.connect(folder).open_table(TABLE)
    table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table(found: Mapping[str, Any]) -> str:
    """Write what :func:`measure` found as a table in Markdown."""
    rows = [Scale(**row) for row in found["results"]]
    header = (
        "vector_index", "documents", "recall@100", "ms a search", "ms a lookup", "build, s", "write, s", "data, MB",
        "index, MB", "peak memory, MB",
    )  # fmt: skip
    cells = [
        (
            f"`{row.vector_index}`", f"{row.documents:,}", f"{100 * row.recall:.1f}", f"{row.milliseconds:.1f}",
            f"{row.lookup_milliseconds:.1f}", f"{row.build_seconds:.1f}", f"{row.write_seconds:.1f}",
            f"{row.data_bytes / 1e6:,.0f}", f"{row.index_bytes / 1e6:,.1f}", f"{row.peak_bytes / 1e6:,.0f}",
        )
        for row in rows
    ]  # fmt: skip
    return markdown_table(header, cells, labels=1) + "\n"


def plan(found: Mapping[str, Any]) -> str:
    """Extrapolate from the largest size that was measured to larger ones, as a table in Markdown.

    Bytes and seconds grow with the number of documents. Texts count with the length of those that were embedded.
    """
    rows = {row["vector_index"]: Scale(**row) for row in found["results"]}  # the largest is the last
    embedded, largest = Embedded(**found["embedded"]), rows["exact"]
    core_hours = embedded.seconds * embedded.cores / embedded.documents / 3600
    header = (
        "documents", "vectors in float16, GB", "texts, GB", "index `int8`, GB", "index `rabitq`, GB",
        "core hours to embed", "machines of 64 cores for a day", "hours to build `int8` on one machine",
    )  # fmt: skip
    cells = []
    for size in (1_000_000, 100_000_000, 1_000_000_000):
        times = size / largest.documents
        hours = core_hours * size
        cells.append(
            (
                f"{size:,}", f"{2 * found['dimension'] * size / 1e9:,.1f}",
                f"{embedded.characters / embedded.documents * size / 1e9:,.1f}",
                f"{rows['int8'].index_bytes * times / 1e9:,.1f}", f"{rows['rabitq'].index_bytes * times / 1e9:,.1f}",
                f"{hours:,.0f}", f"{math.ceil(hours / 64 / 24):,}",
                f"{rows['int8'].build_seconds * times / 3600:,.2f}",
            )
        )  # fmt: skip
    return markdown_table(header, cells, labels=0) + "\n"
