"""Results of a LanceDB query by vector, by text or by both → the same rows, reranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from e2rank_st.integrations.ranking import loaded, ranked
from e2rank_st.model import E2Rank

try:
    import pyarrow as pa
    from lancedb.rerankers import Reranker, RRFReranker
except ModuleNotFoundError as error:
    raise ImportError("This needs LanceDB: pip install 'e2rank-st[search]'") from error

__all__ = ["E2RankReranker"]

SCORE = "_relevance_score"


class E2RankReranker(Reranker):
    """Reranks the rows that a query found, with the vectors in the table.

    The query's own scores are the first stage's: they count if ``first_stage_weight`` is above 0. Those of a hybrid
    query are the reciprocal ranks in both of its lists.

    Args:
        model: A model, or its name: ``"bundled"``, a folder, or a Hub id.
        column: The column with the text.
        vector_column: The column with this model's vectors. Rows without one are embedded, and so are all rows if the
            results do not have the column. ``None`` embeds all: it is right if the vectors are of a different model.
        title_column: The column with a title, which is ranked with the text.
        return_score: ``"relevance"``, or ``"all"`` to keep the query's scores, too.
        options: Options of :meth:`~e2rank_st.E2Rank.rerank`, such as ``{"query_weight": 0.5}``.

    Raises:
        ValueError: The model or ``return_score`` is not one of those above.
        OSError: The model cannot be loaded.
    """

    def __init__(
        self,
        model: E2Rank | str,
        column: str = "text",
        *,
        vector_column: str | None = "vector",
        title_column: str | None = None,
        return_score: str = "relevance",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(return_score)
        self.model = loaded(model)
        self.column = column
        self.vector_column = vector_column
        self.title_column = title_column
        self.options = dict(options or {})

    def rerank_vector(self, query: str, vector_results: pa.Table) -> pa.Table:
        """Rerank the rows of a search by vector."""
        distances = _values(vector_results, "_distance")
        return self._reranked(query, vector_results, distances and [-distance for distance in distances])

    def rerank_fts(self, query: str, fts_results: pa.Table) -> pa.Table:
        """Rerank the rows of a search by text."""
        return self._reranked(query, fts_results, _values(fts_results, "_score"))

    def rerank_hybrid(self, query: str, vector_results: pa.Table, fts_results: pa.Table) -> pa.Table:
        """Rerank the rows that either search found, each once."""
        fused = RRFReranker(return_score="all").rerank_hybrid(query, vector_results, fts_results)
        return self._reranked(query, fused.drop_columns([SCORE]), _values(fused, SCORE))

    def _reranked(self, query: str, results: pa.Table, scores: Sequence[float] | None) -> pa.Table:
        for name in filter(None, (self.column, self.title_column)):
            if name not in results.column_names:
                advice = "Select it in the query, or name the right one."
                raise ValueError(f"The results lack the column {name!r}; they have {results.column_names}. {advice}")
        has_vectors = self.vector_column in results.column_names
        vectors = list(results[self.vector_column].to_numpy()) if has_vectors else None
        hits = ranked(
            self.model,
            query,
            _values(results, self.column),
            titles=None if self.title_column is None else _values(results, self.title_column),
            vectors=vectors,
            scores=scores,
            options=self.options,
        )
        best = results.take(pa.array([hit["corpus_id"] for hit in hits], pa.int64()))
        if self.score == "relevance":
            best = best.drop_columns([name for name in ("_distance", "_score") if name in best.column_names])
        return best.append_column(SCORE, pa.array([hit["score"] for hit in hits], pa.float32()))


def _values(results: pa.Table, name: str) -> Any:
    """The values of a column; ``None`` if the results do not have it."""
    return results[name].to_pylist() if name in results.column_names else None
