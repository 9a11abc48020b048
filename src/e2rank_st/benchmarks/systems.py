"""A query, its candidates and their vectors → a score for each candidate: the systems that are compared.

The systems of a model rank the same candidates with the same document vectors, which are embedded once, so that their
differences are those of the method. Only the call that a user with stored vectors would pay for is timed.

Axes: N candidates of a query, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

import torch
from sentence_transformers import CrossEncoder
from torch import Tensor

from e2rank_st.benchmarks.candidates import Case
from e2rank_st.embedding_e2rank import cosine
from e2rank_st.labelling.teachers import CrossEncoderTeacher
from e2rank_st.model import E2Rank
from e2rank_st.search.vectors import Matrix

__all__ = ["Embedding", "FirstStage", "Fused", "Listwise", "Pointwise", "Rocchio", "System", "best_first", "parameters"]

# The model decides them unless they are given; the last is for fused systems only.
CONFIGURED = ("num_prompt_documents", "candidate_order", "query_weight", "first_stage_weight")


@dataclass(frozen=True)
class FirstStage:
    """The candidates as they came."""

    kind: ClassVar[str] = "first_stage"

    def scores(self, case: Case, vectors: Matrix | None) -> list[float]:
        """The first stage's own scores."""
        return list(case.scores)


@dataclass(frozen=True)
class Embedding:
    """The cosine of query and document."""

    kind: ClassVar[str] = "embedding"
    model: E2Rank

    def scores(self, case: Case, vectors: Matrix | None) -> list[float]:
        """N cosines; costs one forward pass."""
        return cosine(torch.as_tensor(vectors), _embedded_query(self.model, case)).tolist()


@dataclass(frozen=True)
class Rocchio:
    """Pseudo-relevance feedback on the vectors (Rocchio 1971): the query, moved towards its nearest documents.

    The weight is that of their mean vector; the query's is 1.
    """

    kind: ClassVar[str] = "rocchio"
    model: E2Rank
    num_documents: int = 3
    weight: float = 0.3

    def scores(self, case: Case, vectors: Matrix | None) -> list[float]:
        """N cosines to ``query + weight * mean(nearest documents)``; costs one forward pass."""
        documents = torch.as_tensor(vectors)
        query = feedback(_embedded_query(self.model, case), documents, self.num_documents, self.weight)
        return cosine(documents, query).tolist()


def feedback(query: Tensor, documents: Tensor, num_documents: int, weight: float) -> Tensor:
    """Move a query (D,) towards the mean of its nearest documents (N, D), all of unit length."""
    nearest = best_first(cosine(documents, query).tolist())[:num_documents]
    return query + weight * documents[nearest].to(query.device, query.dtype).mean(0) if nearest else query


@dataclass(frozen=True)
class Listwise:
    """Listwise reranking, as ``model.rerank`` does it; None leaves an option to the model."""

    kind: ClassVar[str] = "listwise"
    model: E2Rank
    num_prompt_documents: int | None = None
    candidate_order: str | None = None
    query_weight: float | None = None
    instruction: str | None = None

    def scores(self, case: Case, vectors: Matrix | None) -> list[float]:
        """N cosines; costs a forward pass of the prompt, and one of the query where that has a share."""
        return self._rerank(case, vectors)

    def _rerank(self, case: Case, vectors: Matrix | None, **options: Any) -> list[float]:
        ranking = self.model.rerank(
            case.query,
            list(case.documents),
            document_embeddings=torch.as_tensor(vectors),
            num_prompt_documents=self.num_prompt_documents,
            candidate_order=self.candidate_order,
            query_weight=self.query_weight,
            instruction=self.instruction,
            show_progress_bar=False,
            **options,
        )
        return [hit["score"] for hit in sorted(ranking, key=lambda hit: hit["corpus_id"])]


@dataclass(frozen=True)
class Fused(Listwise):
    """Listwise reranking, mixed with the first stage's scores; None leaves the weight to the model.

    Raises:
        ValueError: The weight is 0, so that this would be :class:`Listwise`.
    """

    kind: ClassVar[str] = "fused"
    first_stage_weight: float | None = None

    def __post_init__(self) -> None:
        """Refuse a system that is another one."""
        if not parameters(self)["first_stage_weight"]:
            raise ValueError("The first-stage weight of the system fused is 0; give one with --first-stage-weight.")

    def scores(self, case: Case, vectors: Matrix | None) -> list[float]:
        """N mixed standard scores; costs as much as listwise reranking."""
        mix = {"first_stage_scores": case.scores, "first_stage_weight": self.first_stage_weight}
        return self._rerank(case, vectors, **mix)


@dataclass(frozen=True)
class Pointwise:
    """A cross-encoder with a single output: a forward pass of query and document for each candidate."""

    kind: ClassVar[str] = "cross_encoder"
    model: CrossEncoder
    batch_size: int = 32

    def scores(self, case: Case, vectors: Matrix | None) -> list[float]:
        """N raw outputs, before any sigmoid; stored vectors are of no use here."""
        return CrossEncoderTeacher(self.model, batch_size=self.batch_size).label(case.query, case.documents)


# Each has a kind, and ``scores(case, vectors)``: a score for each of N candidates, greater is better.
System: TypeAlias = FirstStage | Embedding | Rocchio | Listwise | Pointwise


def parameters(system: System) -> dict[str, Any]:
    """Parameters of a system, as JSON has them; where the model decides one, its value there."""
    values = {field.name: getattr(system, field.name) for field in fields(system) if field.name != "model"}
    if isinstance(system, Listwise):
        for name in CONFIGURED:
            if name in values and values[name] is None:
                values[name] = getattr(system.model.listwise, name)
    return values


def best_first(scores: Sequence[float]) -> list[int]:
    """Places by score, the best first; equal scores keep their order."""
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def _embedded_query(model: E2Rank, case: Case) -> Tensor:
    vector: Tensor = model.encode_query(case.query, convert_to_tensor=True, show_progress_bar=False)
    return vector.float()
