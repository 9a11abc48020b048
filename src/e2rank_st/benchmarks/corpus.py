"""Documents → stored vectors, in an order that only the documents decide; queries → their nearest documents, exactly.

Benchmarks often list relevant documents first. Whatever cannot be told apart by its score would then come in the order
of its label. Here documents are sorted by a hash before anything else, and ties keep that order. Texts stay on disk;
vectors are in memory, and of the scores one chunk at a time.

Axes: B queries, N documents, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from e2rank_st.search.exact import Matrix, Rows, Rules, nearest
from e2rank_st.training.labels import text_id

__all__ = ["Corpus", "Layout", "unit"]

SCORES_AT_ONCE = 2**25  # cells of a score matrix in memory
TEXTS_AT_ONCE = 10_000  # read from disk to be hashed


@dataclass(frozen=True, eq=False)
class Layout:
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
    def of(cls, ids: Sequence[str], texts: Any) -> Layout:
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


@dataclass(frozen=True, eq=False)
class Corpus:
    """N documents and their vectors.

    Attributes:
        layout: The documents.
        vectors: Unit vectors, (N, D).
        chunk_size: How many documents to score at a time.
    """

    layout: Layout
    vectors: Matrix
    chunk_size: int

    @classmethod
    def embed(cls, layout: Layout, encode: Callable[[list[str]], Any], dimension: int, chunk_size: int) -> Corpus:
        """Embed each distinct text once.

        Args:
            layout: The documents.
            encode: Texts → vectors, (texts, D).
            dimension: D.
            chunk_size: How many documents to embed, and later to score, at a time.
        """
        vectors = np.empty((len(layout.ids), dimension), np.float32)
        for start in range(0, len(vectors), chunk_size):
            rows = np.arange(start, min(start + chunk_size, len(vectors)))
            fresh = rows[layout.sources[rows] == rows]
            if len(fresh):
                vectors[fresh] = unit(encode(layout.read(fresh)))
            vectors[rows] = vectors[layout.sources[rows]]
        return cls(layout, vectors, chunk_size)

    def nearest(
        self, queries: Matrix, count: int, device: torch.device, *, listed: Sequence[Rows] | None = None, only: bool
    ) -> list[Rows]:
        """Find each query's nearest documents, exactly.

        Args:
            queries: Unit vectors, (B, D).
            count: How many documents a query.
            device: Where to multiply.
            listed: Rows for each query.
            only: Whether a query may have its listed rows only, or all others.

        Returns:
            B arrays of rows, nearest first, and equally near ones in the order of their hashes.
        """
        lists = [np.empty(0, np.int64)] * len(queries) if listed is None else listed
        chunk = min(self.chunk_size, len(self.vectors))
        step = max(1, SCORES_AT_ONCE // chunk)
        found: list[Rows] = []
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            rules = Rules(lists[start : start + step], only, np.full(len(part), np.inf), ())
            found += nearest(part, self.vectors, rules, min(count, len(self.vectors)), chunk, device)
        return found

    def cosines(self, query: Matrix, rows: Rows) -> list[float]:
        """Cosines of one query to some documents, each by itself in float64: they do not depend on the others."""
        products = self.vectors[rows].astype(np.float64) * query.astype(np.float64)
        values: list[float] = products.sum(axis=1).tolist()
        return values


def unit(vectors: Any) -> Matrix:
    """Vectors of unit length in float32, (B, D); a zero vector stays zero."""
    matrix = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)  # (B, 1)
    scaled: Matrix = matrix / np.where(norms > 0, norms, np.float32(1))
    return scaled
