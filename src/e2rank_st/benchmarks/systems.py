"""A query, its candidates and their vectors → a score for each candidate: the systems that are compared.

All of them rank the same candidates with the same document vectors, which are embedded once, so that differences are
those of the method. A system's call is what a user with stored vectors would pay for, and it is what gets timed.

Axes: N candidates of a query, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from sentence_transformers import CrossEncoder
from torch import Tensor, nn

from e2rank_st.labelling.teachers import CrossEncoderTeacher
from e2rank_st.model import E2Rank
from e2rank_st.modeling_e2rank import CANDIDATE_ORDERS, cosine

if TYPE_CHECKING:
    from e2rank_st.benchmarks.candidates import Case

__all__ = [
    "Embedding",
    "FirstStage",
    "Listwise",
    "Pointwise",
    "Rocchio",
    "System",
    "Vectors",
    "best_first",
    "counted_tokens",
    "settings",
]

CONFIGURED = ("num_prompt_documents", "candidate_order", "query_weight")  # what a model decides unless told


class Vectors:
    """Document vectors by text.

    Args:
        texts: M documents.
        matrix: Their vectors, NumPy or torch, of shape (M, D).
    """

    def __init__(self, texts: Sequence[str], matrix: Any) -> None:
        self._rows = {text: row for row, text in enumerate(texts)}
        self._matrix = torch.as_tensor(matrix)

    @classmethod
    def embed(cls, model: E2Rank, cases: Sequence[Case], *, batch_size: int, show_progress_bar: bool) -> Vectors:
        """Embed each distinct candidate of all queries once."""
        texts = list(dict.fromkeys(text for case in cases for text in case.documents))
        options: Any = {"batch_size": batch_size, "show_progress_bar": show_progress_bar, "convert_to_tensor": True}
        return cls(texts, model.encode_document(texts, **options))

    def of(self, case: Case) -> Tensor:
        """The vectors of a query's candidates, of shape (N, D)."""
        return self._matrix[[self._rows[text] for text in case.documents]]


@dataclass(frozen=True)
class FirstStage:
    """The candidates as they came."""

    kind: ClassVar[str] = "first_stage"
    model: None = None

    def scores(self, case: Case, vectors: Tensor | None) -> list[float]:
        """The first stage's own scores."""
        return list(case.scores)


@dataclass(frozen=True)
class Embedding:
    """The cosine of query and document."""

    kind: ClassVar[str] = "embedding"
    model: E2Rank

    def scores(self, case: Case, vectors: Tensor | None) -> list[float]:
        """N cosines; costs one forward pass."""
        return _cosines(_embedded_query(self.model, case), vectors).tolist()


@dataclass(frozen=True)
class Rocchio:
    """Pseudo-relevance feedback on the vectors (Rocchio 1971): the query, moved towards its nearest documents.

    Attributes:
        model: The model.
        num_documents: How many of the nearest documents are taken to be relevant.
        weight: Of their mean vector; that of the query is 1.
    """

    kind: ClassVar[str] = "rocchio"
    model: E2Rank
    num_documents: int = 3
    weight: float = 0.3

    def scores(self, case: Case, vectors: Tensor | None) -> list[float]:
        """N cosines to ``query + weight * mean(nearest documents)``; costs one forward pass."""
        query = _embedded_query(self.model, case)
        return _cosines(feedback(query, _given(vectors), self.num_documents, self.weight), vectors).tolist()


def feedback(query: Tensor, documents: Tensor, num_documents: int, weight: float) -> Tensor:
    """Move a query towards the mean of its nearest documents.

    Args:
        query: Vector of unit length, (D,).
        documents: Vectors of unit length, (N, D).
        num_documents: How many are taken, nearest first; more than N takes all.
        weight: Of the mean.

    Returns:
        The moved query, (D,).
    """
    nearest = best_first(cosine(documents, query).tolist())[:num_documents]
    return query + weight * documents[nearest].to(query.device, query.dtype).mean(0) if nearest else query


@dataclass(frozen=True)
class Listwise:
    """Listwise reranking, as ``model.rerank`` does it.

    Attributes:
        model: The model.
        num_prompt_documents: K; None for the model's.
        candidate_order: ``given`` or ``similarity``; None for the model's.
        passes: How often the candidates are reranked; a later pass shows the best of the one before.
        query_weight: Share of the query's own vector in the one that ranks; None for the model's.
        instruction: Of the prompt; None for the model's.

    Raises:
        ValueError: A value is not allowed.
    """

    kind: ClassVar[str] = "listwise"
    model: E2Rank
    num_prompt_documents: int | None = None
    candidate_order: str | None = None
    passes: int = 1
    query_weight: float | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        """Check what ``rerank`` does not."""
        if self.passes < 1:
            raise ValueError(f"Got {self.passes} passes; give at least 1.")
        if self.query_weight is not None and not 0 <= self.query_weight <= 1:
            raise ValueError(f"Got the query weight {self.query_weight}; give one from 0 to 1.")
        if self.candidate_order not in (None, *CANDIDATE_ORDERS):
            raise ValueError(f"Got the order {self.candidate_order!r}; give one of {', '.join(CANDIDATE_ORDERS)}.")

    def scores(self, case: Case, vectors: Tensor | None) -> list[float]:
        """N cosines; costs a forward pass of the prompt for each pass, and one of the query where that is used."""
        scores = self._pass(case, vectors, list(range(len(case.documents))), self.candidate_order)
        for _ in range(1, self.passes):
            scores = self._pass(case, vectors, best_first(scores), "given")
        return scores

    def _pass(self, case: Case, vectors: Tensor | None, order: list[int], candidate_order: str | None) -> list[float]:
        """Rerank the candidates in an order; the scores are in the order of the case."""
        ranking = self.model.rerank(
            case.query,
            [case.documents[place] for place in order],
            document_embeddings=_given(vectors)[order],
            num_prompt_documents=self.num_prompt_documents,
            candidate_order=candidate_order,
            query_weight=self.query_weight,
            instruction=self.instruction,
            show_progress_bar=False,
        )
        scores = {order[hit["corpus_id"]]: float(hit["score"]) for hit in ranking}
        return [scores[place] for place in range(len(order))]


@dataclass(frozen=True)
class Pointwise:
    """A cross-encoder: a forward pass of query and document for each candidate.

    Attributes:
        model: A Sentence-Transformers cross-encoder with a single output.
        batch_size: Pairs in a forward pass.
    """

    kind: ClassVar[str] = "cross_encoder"
    model: CrossEncoder
    batch_size: int = 32

    def scores(self, case: Case, vectors: Tensor | None) -> list[float]:
        """N raw outputs, before any sigmoid; stored vectors are of no use here."""
        return CrossEncoderTeacher(self.model, batch_size=self.batch_size).label(case.query, case.documents)


# Each has a kind, a model, and ``scores(case, vectors)``: a score for each of N candidates, greater is better.
System: TypeAlias = FirstStage | Embedding | Rocchio | Listwise | Pointwise


def settings(system: System) -> dict[str, Any]:
    """Kind and parameters of a system, as JSON has them; what a model decides is its value there."""
    values = {field.name: getattr(system, field.name) for field in fields(system) if field.name != "model"}
    if isinstance(system, Listwise):
        configured = system.model.listwise
        defaults = {name: getattr(configured, name) for name in CONFIGURED}
        values = {name: defaults.get(name) if value is None else value for name, value in values.items()}
    return {"kind": system.kind, **values}


def best_first(scores: Sequence[float]) -> list[int]:
    """Places by score, the best first; equal scores keep their order."""
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def _embedded_query(model: E2Rank, case: Case) -> Tensor:
    vector: Tensor = model.encode_query(case.query, convert_to_tensor=True, show_progress_bar=False)
    return vector.float()


def _cosines(query: Tensor, vectors: Tensor | None) -> Tensor:
    return cosine(_given(vectors), query)


def _given(vectors: Tensor | None) -> Tensor:
    if vectors is None:
        raise ValueError("Got no document vectors; embed the candidates first.")
    return vectors


@contextmanager
def counted_tokens(model: nn.Module | None) -> Iterator[Callable[[], int]]:
    """Count the tokens that go through a model, padding not among them.

    Args:
        model: A Sentence-Transformers model, or None, which counts nothing.

    Yields:
        A function that tells how many there were since it was last called.
    """
    total = 0

    def count(_: nn.Module, inputs: tuple[Mapping[str, Tensor], ...]) -> None:
        nonlocal total
        mask = inputs[0].get("attention_mask")
        total += int(mask.sum()) if mask is not None and mask.ndim == 2 else inputs[0]["input_ids"].numel()

    def taken() -> int:
        nonlocal total
        tokens, total = total, 0
        return tokens

    hook = None if model is None else next(model.children()).register_forward_pre_hook(count)
    try:
        yield taken
    finally:
        if hook is not None:
            hook.remove()
