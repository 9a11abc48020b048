"""Queries and an embedded corpus → scores of documents by id, in one stage or two, and the cost of that.

Axes: B queries, N documents of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from transformers.utils.logging import tqdm

from e2rank_st.benchmarks.corpus import Corpus, Layout
from e2rank_st.model import E2Rank
from e2rank_st.provenance import Cost
from e2rank_st.search.reranking import rerank_rows
from e2rank_st.search.vectors import Rows

__all__ = ["MODES", "TAIL_SHIFT", "Mode", "SearchCost", "candidate_rows", "head_and_tail", "named", "rerank"]

Mode: TypeAlias = Literal["embedding", "two-stage"]
MODES: tuple[Mode, ...] = get_args(Mode)
# A cosine of stage 1 is not comparable with one of stage 2. Shifted by this, it is below all of those: in [-4, -2].
TAIL_SHIFT = 3.0
QUERIES_AT_ONCE = 64  # in one call of rerank, between two steps of the progress bar


@dataclass(frozen=True)
class SearchCost:
    """The cost of searching one corpus.

    Attributes:
        task: Name of the task.
        subset: Its subset.
        split: Its split.
        mode: How it was searched.
        queries: B.
        documents: N.
        index: Embedding of the distinct documents; nothing where their vectors were there already.
        retrieval: Embedding of the queries, and stage 1.
        reranking: Stage 2: the listwise prompts.
    """

    task: str
    subset: str
    split: str
    mode: Mode
    queries: int
    documents: int
    index: Cost
    retrieval: Cost
    reranking: Cost

    def described(self) -> dict[str, Any]:
        """The cost of the search, and of one of its queries."""
        stages = (self.retrieval, self.reranking)
        per_query = {
            "texts": round(sum(stage.texts for stage in stages) / self.queries, 3),
            "query_tokens": round(self.retrieval.tokens / self.queries, 1),
            "prompt_tokens": round(self.reranking.tokens / self.queries, 1),
            "seconds": round(sum(stage.seconds for stage in stages) / self.queries, 5),
        }
        return {**asdict(self), "per_query": per_query}


def candidate_rows(
    layout: Layout, queries: Sequence[str], top_ranked: Any, *, leave_out_itself: bool
) -> list[Rows] | None:
    """Find the rows that stage 1 has to know of.

    Args:
        layout: The documents.
        queries: Ids of B queries.
        top_ranked: Candidates of each query by their ids, or None.
        leave_out_itself: Whether a document with the query's own id is not an answer.

    Returns:
        With candidates, their rows for each query. Without, the row to leave out for each query, or None for no rule.

    Raises:
        ValueError: A candidate is not in the corpus.
    """
    if top_ranked is None:
        if not leave_out_itself:
            return None
        return [_rows(layout, {query} & layout.row_of.keys(), query) for query in queries]
    left_out = [{query} if leave_out_itself else set() for query in queries]
    return [
        _rows(layout, set(top_ranked.get(query) or ()) - itself, query)
        for query, itself in zip(queries, left_out, strict=True)
    ]


def _rows(layout: Layout, candidates: set[str], query: str) -> Rows:
    missing = sorted(candidates - layout.row_of.keys())
    if missing:
        raise ValueError(f"Query {query!r} has {len(missing)} candidates that the corpus lacks, as {missing[0]!r}.")
    return np.sort(np.fromiter((layout.row_of[id_] for id_ in candidates), np.int64, len(candidates)))


def rerank(
    model: E2Rank, corpus: Corpus, queries: Sequence[str], heads: Sequence[Rows], *, bar: bool, **options: Any
) -> list[dict[str, float]]:
    """Rerank documents, in the order that stage 1 gave them, with their stored vectors.

    Args:
        model: The model that made the vectors.
        corpus: The documents.
        queries: B queries.
        heads: The rows to rerank for each query.
        bar: Whether to show a progress bar: one for all calls, since each is short.
        **options: As for ``rerank``.

    Returns:
        For each query, scores by document id, best first.
    """
    results: list[dict[str, float]] = []
    with tqdm(total=len(queries), desc="rerank", disable=not bar) as progress:
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            rows = heads[part]
            documents = corpus.layout.read(np.concatenate(rows))
            bounds = pairwise(accumulate(map(len, rows), initial=0))
            texts = [documents[first:last] for first, last in bounds]
            vectors = [corpus.vectors[head] for head in rows]
            options |= {"candidate_order": "given", "show_progress_bar": False}
            for ranking in rerank_rows(model, queries[part], rows, texts, vectors, **options):
                scores = [hit["score"] for hit in ranking]
                results.append(named(corpus, [hit["corpus_id"] for hit in ranking], scores))
            progress.update(len(rows))
    return results


def named(corpus: Corpus, rows: Iterable[int], scores: Iterable[float]) -> dict[str, float]:
    """Scores by the ids of the rows."""
    return {corpus.layout.ids[row]: score for row, score in zip(rows, scores, strict=True)}


def head_and_tail(head: dict[str, float], scores: dict[str, float]) -> dict[str, float]:
    """The reranked documents, then the rest of stage 1, strictly below."""
    return head | {id_: score - TAIL_SHIFT for id_, score in scores.items() if id_ not in head}
