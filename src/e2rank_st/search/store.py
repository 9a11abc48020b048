"""The contract of a place that keeps documents with their vectors, and finds the best of them for a query.

Axes: B queries, P passages of one document, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from e2rank_st.search.records import Record
from e2rank_st.search.vectors import Matrix

__all__ = ["FIRST_STAGES", "VECTOR_INDEXES", "Entry", "FirstStage", "Found", "Store", "VectorIndex", "Where"]

FirstStage: TypeAlias = Literal["vector", "text", "hybrid"]
FIRST_STAGES: tuple[FirstStage, ...] = ("vector", "text", "hybrid")
# How vectors are searched: all of them, or some by copies of 8 bits or of one bit a dimension.
VectorIndex: TypeAlias = Literal["auto", "exact", "int8", "rabitq"]
VECTOR_INDEXES: tuple[VectorIndex, ...] = ("auto", "exact", "int8", "rabitq")
# SQL of LanceDB, one of its expressions, or values that fields must have.
Where: TypeAlias = Any


class Entry(NamedTuple):
    """A document and its vectors: one, or one for each passage, (P, D), of unit length."""

    record: Record
    vectors: Matrix


class Found(NamedTuple):
    """A document that a search found, and its score there; a greater score is better."""

    entry: Entry
    score: float


class Store(Protocol):
    """Documents by id."""

    def __len__(self) -> int:
        """Number of documents."""

    def add(self, entries: Sequence[Entry]) -> None:
        """Add documents; one with a known id replaces the old one. All of them are added, or none."""

    def get(self, ids: Sequence[str]) -> Mapping[str, Entry]:
        """Find documents by id; unknown ids are left out."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents by id; unknown ids are left out."""

    def optimize(self, vector_index: VectorIndex) -> None:
        """Bring everything that makes a search quick up to date."""

    def search(
        self, queries: Sequence[str], vectors: Matrix, count: int, first_stage: FirstStage, where: Where
    ) -> list[list[Found]]:
        """Find the best documents of each query.

        Args:
            queries: B queries.
            vectors: Their vectors, (B, D).
            count: Documents for each query.
            first_stage: By the cosine of the best passage, by BM25 of the words, or by both.
            where: A condition on fields; None for all documents.
        """
