"""Candidates of each query → the same ones, reranked listwise with their stored vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from e2rank_st.search.hits import Candidates
from e2rank_st.search.records import Record
from e2rank_st.search.vectors import Matrix

__all__ = ["rerank_candidates", "rerank_rows"]


def rerank_rows(
    model: Any,
    queries: Sequence[str],
    rows: Sequence[Any],
    texts: Sequence[Sequence[str]],
    vectors: Sequence[Any],
    **options: Any,
) -> list[list[dict[str, Any]]]:
    """Rerank the candidates of each query; in the results, ``corpus_id`` is the candidate's row.

    Args:
        model: A model with ``rerank``.
        queries: B queries.
        rows: For each query, the row numbers of its N candidates, in an order that a prompt may trust.
        texts: For each query, the texts of its candidates.
        vectors: For each query, the stored vectors of its candidates, (N, D).
        **options: As for ``rerank``.

    Returns:
        For each query, the hits of ``rerank``.
    """
    rankings: list[list[dict[str, Any]]] = model.rerank(
        list(queries), [list(part) for part in texts], document_embeddings=list(vectors), **options
    )
    for ranking, candidates in zip(rankings, rows, strict=True):
        for hit in ranking:
            hit["corpus_id"] = int(candidates[hit["corpus_id"]])
    return rankings


def rerank_candidates(
    model: Any,
    queries: Sequence[str],
    vectors: Matrix,
    candidates: Sequence[Candidates],
    text: Callable[[Record], str],
    **options: Any,
) -> list[list[dict[str, Any]]]:
    """Rerank what a search has found. A query without candidates is left out of the call.

    Args:
        model: A model with ``rerank``.
        queries: B queries.
        vectors: Their vectors, (B, D).
        candidates: What was found for each.
        text: Gives the text of a document as it was embedded.
        **options: As for ``rerank``.

    Returns:
        For each query, the hits of ``rerank``.
    """
    rankings: list[list[dict[str, Any]]] = [[] for _ in queries]
    asked = [row for row, part in enumerate(candidates) if part.found]
    found = [candidates[row].found for row in asked]
    stored: list[Any] = [[part.entry.vectors for part in parts] for parts in found]
    if options["long_documents"] == "cut":
        stored = list(map(np.concatenate, stored))
    ranked = model.rerank(
        [queries[row] for row in asked],
        [[text(part.entry.record) for part in parts] for parts in found],
        query_embeddings=vectors[asked],
        document_embeddings=stored,
        first_stage_scores=[[part.score for part in parts] for parts in found],
        show_progress_bar=False,
        **options,
    )
    for row, ranking in zip(asked, ranked, strict=True):
        rankings[row] = ranking
    return rankings
