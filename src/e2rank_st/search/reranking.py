"""Retrieved rows of each query → the same rows, reranked listwise with their stored vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["rerank_rows"]


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
