"""Documents → stored vectors, in an order that only the documents decide.

Benchmarks often list relevant documents first. Whatever cannot be told apart by its score would then come in the order
of its label. Here documents are sorted by a hash before anything else, and ties keep that order. Texts stay on disk,
vectors are in memory.

Axes: N documents, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np

from e2rank_st.search.vectors import Matrix, Rows, unit_rows
from e2rank_st.storage import text_id

__all__ = ["Corpus"]

TEXTS_AT_ONCE = 10_000  # read from disk to be hashed


@dataclass(frozen=True, eq=False)
class Corpus:
    """N documents in the order of their hashes.

    Attributes:
        ids: Their ids, in this order.
        texts: The column ``text`` of a data set, in the order that it has on disk.
        places: Where in ``texts`` each document is.
        hashes: The 63-bit hash of each text, ascending.
    """

    ids: list[str]
    texts: Any
    places: Rows
    hashes: Rows

    @classmethod
    def of(cls, ids: Sequence[str], texts: Any) -> Corpus:
        """Sort documents by the hash of their text, and equal ones by that of their id.

        Args:
            ids: N ids.
            texts: A data set with N rows and the column ``text``.
        """
        # Two of ten million texts collide with a chance of one in two hundred thousand.
        hashes = np.empty(len(ids), np.int64)
        for start in range(0, len(ids), TEXTS_AT_ONCE):
            part = slice(start, start + TEXTS_AT_ONCE)
            hashes[part] = [text_id(text) for text in texts[part]["text"]]
        places = np.lexsort((np.asarray([text_id(id_) for id_ in ids], np.int64), hashes))
        return cls([ids[place] for place in places], texts, places, hashes[places])

    @cached_property
    def sources(self) -> Rows:
        """For each document, the first one with the same text."""
        repeated = np.append(False, self.hashes[1:] == self.hashes[:-1])
        sources: Rows = np.maximum.accumulate(np.where(repeated, 0, np.arange(len(self.ids))))
        return sources

    @cached_property
    def fingerprint(self) -> str:
        """Equal for the same ids with the same texts, whatever their order."""
        return blake2b(self.hashes.tobytes() + "\0".join(self.ids).encode()).hexdigest()

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """The row of an id."""
        return {id_: row for row, id_ in enumerate(self.ids)}

    def read(self, rows: Rows) -> list[str]:
        """The texts of some documents."""
        texts: list[str] = self.texts[self.places[rows].tolist()]["text"]
        return texts

    def embed(self, encode: Callable[[list[str]], Any], dimension: int, chunk_size: int = 50_000) -> Matrix:
        """Embed each distinct text once.

        Args:
            encode: Texts → vectors, (texts, D).
            dimension: D.
            chunk_size: How many documents to embed at a time.

        Returns:
            Unit vectors, (N, D).
        """
        vectors = np.empty((len(self.ids), dimension), np.float32)
        for start in range(0, len(vectors), chunk_size):
            rows = np.arange(start, min(start + chunk_size, len(vectors)))
            fresh = rows[self.sources[rows] == rows]
            if len(fresh):
                vectors[fresh] = unit_rows(encode(self.read(fresh)))
            vectors[rows] = vectors[self.sources[rows]]
        return vectors
