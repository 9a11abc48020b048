"""Documents in memory, with exact search. For tests, demonstrations and some 100,000 documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from e2rank_st.search.condition import allowed_values
from e2rank_st.search.exact import Rules, nearest
from e2rank_st.search.records import Record
from e2rank_st.search.store import Entry, FirstStage, Found, VectorIndex, Where
from e2rank_st.search.vectors import Matrix
from e2rank_st.wiring import Lock

__all__ = ["MemoryStore"]


class MemoryStore:
    """Documents by id, in the order in which they came. Ties of a search keep that order."""

    def __init__(self) -> None:
        self._changing = Lock()  # a change reads what it replaces, so two at once would lose one
        self._entries: dict[str, Entry] = {}
        self._fields: dict[str, None] = {}  # of all documents so far, as the columns of a table
        self._matrix: tuple[list[Entry], Matrix, np.ndarray] | None = None  # documents, all passages, whose they are

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._entries)

    def add(self, entries: Sequence[Entry]) -> None:
        """Add documents; one with a known id replaces the old one."""
        with self._changing:
            self._entries, self._matrix = self._entries | {entry.record.id: entry for entry in entries}, None
            self._fields = self._fields | dict.fromkeys(name for entry in entries for name in entry.record.fields)

    def get(self, ids: Sequence[str]) -> Mapping[str, Entry]:
        """Find documents by id; unknown ids are left out."""
        return {id_: self._entries[id_] for id_ in ids if id_ in self._entries}

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents by id; unknown ids are left out."""
        gone = set(ids)
        with self._changing:
            self._entries = {id_: part for id_, part in self._entries.items() if id_ not in gone}
            self._matrix = None

    def optimize(self, vector_index: VectorIndex) -> None:
        """Do nothing: the search is exact."""

    def search(
        self, queries: Sequence[str], vectors: Matrix, count: int, first_stage: FirstStage, where: Where
    ) -> list[list[Found]]:
        """Find the best documents of each query by the cosine of their best passage.

        Raises:
            ValueError: Words are searched, or the condition is not a mapping of known fields to values.
        """
        if first_stage != "vector":
            raise ValueError(f"first_stage={first_stage!r} needs an index on disk; create one with a path.")
        condition = {} if where is None else allowed_values(where, self._fields)
        with self._changing:
            if not self._entries:
                return [[] for _ in queries]
            entries, passages, owners = self._matrix = self._matrix or self._joined()
        rules = None
        if condition:
            allowed = np.array([_has(entry.record, condition) for entry in entries], bool)[owners].nonzero()[0]
            rules = Rules([allowed] * len(queries), only=True)
        longest = int(np.bincount(owners).max())  # so many passages may be of one document
        found = []
        for rows, scores in nearest(vectors, passages, count * longest, rules=rules):
            best: dict[int, float] = {}
            for owner, score in zip(owners[rows].tolist(), scores.tolist(), strict=True):
                best.setdefault(owner, score)
            found.append([Found(entries[owner], score) for owner, score in list(best.items())[:count]])
        return found

    def _joined(self) -> tuple[list[Entry], Matrix, np.ndarray]:
        entries = list(self._entries.values())
        return (
            entries,
            np.concatenate([entry.vectors for entry in entries]),
            np.repeat(np.arange(len(entries)), [len(e.vectors) for e in entries]),
        )


def _has(record: Record, condition: Mapping[str, list[Any]]) -> bool:
    values = record.as_dict()
    return all(values.get(name) in allowed for name, allowed in condition.items())
