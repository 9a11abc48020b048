"""What the first stage found for a query, with cosines → the hits that a search returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from e2rank_st.search.store import FirstStage, Found
from e2rank_st.search.vectors import Matrix
from e2rank_st.storage import text_id

__all__ = ["Candidates"]


class Candidates(NamedTuple):
    """What the first stage found for a query, best first, with the cosines to it."""

    found: list[Found]
    similar: list[float]

    @classmethod
    def of(cls, vector: Matrix, found: list[Found], first_stage: FirstStage) -> Candidates:
        """Compute the cosines anew: an index may know them only about. By vectors, they are the scores.

        Equal scores come in the order of a hash: ids may show what is relevant.
        """
        cosines = [float((part.entry.vectors.astype(np.float64) @ vector).max()) for part in found]
        pairs = list(zip(found, cosines, strict=True))
        if first_stage == "vector":
            pairs = [(part._replace(score=cosine), cosine) for part, cosine in pairs]
        pairs.sort(key=lambda pair: (-pair[0].score, text_id(pair[0].entry.record.id)))
        return cls([part for part, _ in pairs], [cosine for _, cosine in pairs])

    def hits(self, ranking: list[dict[str, Any]] | None, least: float) -> list[dict[str, Any]]:
        """The results in the order of a ranking, or in the order of the first stage."""
        if ranking is None:
            ranking = [{"corpus_id": row, "score": part.score} for row, part in enumerate(self.found)]
        return [
            {
                "id": (record := self.found[row].entry.record).id,
                "score": hit["score"],
                "similarity": self.similar[row],
                "retrieval_rank": row + 1,
                "retrieval_score": self.found[row].score,
                "text": record.text,
                "title": record.title,
                "fields": dict(record.fields),
            }
            for hit in ranking
            for row in [hit["corpus_id"]]
            if self.similar[row] >= least
        ]
