"""Queries and an embedded corpus → scores of documents by id, in one stage or two.

Axes: B queries, N documents of the corpus, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from transformers.utils.logging import tqdm

from e2rank_st.benchmarks.corpus import Corpus
from e2rank_st.model import E2Rank
from e2rank_st.search.exact import Rules
from e2rank_st.search.reranking import rerank_rows
from e2rank_st.search.vectors import Matrix, Rows

__all__ = ["MODES", "TAIL_SHIFT", "Mode", "rerank", "rules_of"]

Mode: TypeAlias = Literal["embedding", "two-stage"]
MODES: tuple[Mode, ...] = get_args(Mode)
# A cosine of stage 1 is not comparable with one of stage 2. Shifted by this, it is below all of those: in [-4, -2].
TAIL_SHIFT = 3.0
QUERIES_AT_ONCE = 64  # in one call of rerank, between two steps of the progress bar


def rules_of(corpus: Corpus, queries: Sequence[str], top_ranked: Any, *, leave_out_itself: bool) -> Rules | None:
    """Find the documents that stage 1 may or may not return.

    Args:
        corpus: The documents.
        queries: Ids of B queries.
        top_ranked: Candidates of each query by their ids, or None for the whole corpus.
        leave_out_itself: Whether a document with the query's own id is not an answer.

    Raises:
        ValueError: A candidate is not in the corpus.
    """
    if top_ranked is None and not leave_out_itself:
        return None
    listed = []
    for query in queries:
        itself = {query} & corpus.row_of.keys() if leave_out_itself else set()
        ids = itself if top_ranked is None else set(top_ranked.get(query) or ()) - itself
        if missing := sorted(ids - corpus.row_of.keys()):
            raise ValueError(f"Query {query!r} has {len(missing)} candidates that the corpus lacks, as {missing[0]!r}.")
        listed.append(np.sort(np.fromiter(map(corpus.row_of.__getitem__, ids), np.int64, len(ids))))
    return Rules(listed, only=top_ranked is not None)


def rerank(
    model: E2Rank,
    corpus: Corpus,
    vectors: Matrix,
    queries: Sequence[str],
    heads: Sequence[Rows],
    *,
    bar: bool,
    **options: Any,
) -> list[dict[str, float]]:
    """Rerank documents, in the order that stage 1 gave them, with their stored vectors.

    Args:
        model: The model that made the vectors.
        corpus: The documents.
        vectors: Their vectors, (N, D).
        queries: B queries.
        heads: The rows to rerank for each query.
        bar: Whether to show a progress bar: one for all calls, since each is short.
        **options: As for ``rerank``.

    Returns:
        For each query, scores by document id, best first.
    """
    results: list[dict[str, float]] = []
    options |= {"candidate_order": "given", "show_progress_bar": False}
    with tqdm(total=len(queries), desc="rerank", disable=not bar) as progress:
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            rows = heads[part]
            documents = corpus.read(np.concatenate(rows))
            texts = [documents[first:last] for first, last in pairwise(accumulate(map(len, rows), initial=0))]
            for ranking in rerank_rows(model, queries[part], rows, texts, [vectors[head] for head in rows], **options):
                results.append({corpus.ids[hit["corpus_id"]]: hit["score"] for hit in ranking})
            progress.update(len(rows))
    return results
