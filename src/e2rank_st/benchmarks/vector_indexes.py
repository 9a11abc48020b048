"""Judged collections, through an index on disk → what an approximate search costs, before and after reranking."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from e2rank_st.console import markdown_table
from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.evaluation.metrics import ndcg
from e2rank_st.model import E2Rank
from e2rank_st.search.index import SearchIndex
from e2rank_st.search.store import VECTOR_INDEXES, VectorIndex

__all__ = ["Found", "measure", "table"]

KINDS: tuple[VectorIndex, ...] = VECTOR_INDEXES[1:]  # "auto" is none of its own; the exact one comes first
CANDIDATES = 100


@dataclass(frozen=True)
class Found:
    """One way of finding near vectors, in one collection.

    Attributes:
        data: Name of the collection.
        vector_index: As for :meth:`~e2rank_st.search.index.SearchIndex.optimize`.
        documents: Their number.
        queries: Number of judged queries.
        recall: Mean share of the exact search's candidates that are found.
        first_stage: Mean nDCG@10 of the candidates, from 0 to 1.
        reranked: The same after listwise reranking.
    """

    data: str
    vector_index: str
    documents: int
    queries: int
    recall: float
    first_stage: float
    reranked: float


def measure(model: E2Rank, folders: Sequence[Path], place: Path) -> dict[str, Any]:
    """Put each collection into an index on disk, and search it in each way with the queries of its test split.

    Args:
        model: The model.
        folders: Collections in BEIR's layout.
        place: Where the indexes are kept; what is there already is not embedded again.

    Returns:
        ``model`` and ``results``, as JSON can hold them.
    """
    rows: list[Found] = []
    for folder in folders:
        rows += _measure(model, folder, place / f"{folder.name}.lance")
    return {"model": model.name, "results": [asdict(row) for row in rows]}


def _measure(model: E2Rank, folder: Path, place: Path) -> list[Found]:
    data = JudgedCorpus.load(folder, "test")
    judged = {id_: grades for id_, grades in data.judgements.items() if max(grades.values(), default=0) > 0}
    queries = [data.queries[id_] for id_ in judged]
    index = SearchIndex.create(place, model, next(folder.glob("corpus.*")), show_progress_bar=True)
    exact: list[set[str]] = []
    rows = []
    for kind in KINDS:
        index.optimize(kind)
        stages = [
            [[hit["id"] for hit in hits] for hits in index.search(queries, CANDIDATES, CANDIDATES, rerank=rerank)]
            for rerank in (False, True)
        ]
        exact = exact or [set(ids) for ids in stages[0]]
        recall = statistics.fmean(len(near & set(ids)) / len(near) for near, ids in zip(exact, stages[0], strict=True))
        scores = [
            statistics.fmean(
                ndcg([grades.get(id_) for id_ in ids], grades.values())
                for ids, grades in zip(stage, judged.values(), strict=True)
            )
            for stage in stages
        ]
        rows.append(Found(folder.name, kind, len(index), len(queries), recall, *scores))
    return rows


def table(found: Mapping[str, Any]) -> str:
    """Write what :func:`measure` found as a table in Markdown."""
    header = ("collection", "vector_index", "documents", "queries", "recall@100", "vectors alone", "reranked")
    cells = [
        (
            row.data, f"`{row.vector_index}`", f"{row.documents:,}", f"{row.queries}", f"{100 * row.recall:.1f}",
            f"{100 * row.first_stage:.2f}", f"{100 * row.reranked:.2f}",
        )
        for row in (Found(**row) for row in found["results"])
    ]  # fmt: skip
    return markdown_table(header, cells, labels=2) + "\n"
