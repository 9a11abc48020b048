"""Texts and their vectors, row by row, for training and evaluation. A user's collection is a ``SearchIndex``.

Axes: B queries, N documents, D dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from e2rank_st.arguments_e2rank import natural
from e2rank_st.search.exact import nearest
from e2rank_st.search.folder import read_vectors, write_vectors
from e2rank_st.search.vectors import Matrix, Rows, embed_distinct, read_texts, unit_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["TextVectors"]


@dataclass(frozen=True, eq=False)
class TextVectors:
    """Texts and their vectors, row by row, in the order of the texts.

    Attributes:
        texts: The N documents.
        embeddings: ``(N, D)`` float32; each row is normalised to unit length.

    Raises:
        ValueError: The texts are not strings, or the embeddings are not a finite ``(N, D)`` matrix.
    """

    texts: list[str]
    embeddings: Matrix

    def __post_init__(self) -> None:
        """Check both parts, and normalise the vectors."""
        object.__setattr__(self, "texts", read_texts(self.texts))
        object.__setattr__(self, "embeddings", unit_rows(self.embeddings))
        if len(self.texts) != len(self.embeddings):
            raise ValueError(
                f"Got {len(self.texts)} texts and {len(self.embeddings)} embeddings; give one row for each text."
            )

    def __len__(self) -> int:
        """Number of documents, N."""
        return len(self.texts)

    @property
    def dimension(self) -> int:
        """Length of a vector, D."""
        return int(self.embeddings.shape[1])

    @classmethod
    def build(
        cls,
        model: SentenceTransformer,
        texts: Iterable[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> TextVectors:
        """Embed each distinct text once, as a document.

        Args:
            model: Any Sentence Transformers model; its ``encode_document`` is called.
            texts: The N documents, at least one: a list, an array, a column of a table, or a generator.
            batch_size: Texts in a forward pass.
            show_progress_bar: Whether to show a bar on stderr; by default, the level of the library's logger decides.

        Raises:
            ValueError: ``texts`` is empty, or an entry is not a string.
        """
        if not hasattr(model, "encode_document"):
            raise ValueError(f"model must be a Sentence Transformers model, got {type(model).__name__}.")
        texts, batch_size = read_texts(texts), natural("batch_size", batch_size, least=1)
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        return cls(texts, embed_distinct(model, texts, **options))

    def vectors(self, texts: Iterable[str]) -> Matrix:
        """Return the stored vectors of n texts, in their order, (n, D).

        Raises:
            KeyError: A text is not in the index.
        """
        return self.embeddings[[self._row_of[text] for text in texts]]

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.texts)}

    def retrieve(self, query_embeddings: Any, top_k: int) -> tuple[Matrix, Rows]:
        """Find the documents nearest to each query by cosine, with an exact search.

        A score does not depend on the rest of the call. Equal documents tie and keep the order of the index.

        Args:
            query_embeddings: ``(B, D)`` matrix, NumPy or torch, of any float type and length.
            top_k: Documents for each query; a larger number than N gives all documents.

        Returns:
            Scores, float32, and row numbers, int64, both ``(B, min(top_k, N))`` and best first.

        Raises:
            ValueError: The embeddings do not fit the index, or ``top_k`` is negative.
        """
        queries, top_k = unit_rows(query_embeddings, "query_embeddings"), natural("top_k", top_k)
        if queries.shape[1] != self.dimension:
            raise ValueError(
                f"Got query embeddings of dimension {queries.shape[1]} for an index of dimension {self.dimension}; "
                "embed both with the same model."
            )
        found = nearest(queries, self.embeddings, top_k)
        shape = (len(queries), min(top_k, len(self)))
        scores = np.array([part.scores for part in found], np.float32).reshape(shape)
        return scores, np.array([part.rows for part in found], np.int64).reshape(shape)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to a folder, whole or not at all: a manifest, the vectors, and the texts as JSON lines.

        Args:
            folder: A new or empty folder, or the folder of an index, which is replaced.

        Raises:
            ValueError: The folder holds other files.
            OSError: The folder cannot be written.
        """
        write_vectors(folder, self.texts, self.embeddings)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TextVectors:
        """Read an index that ``save`` wrote; each bit of its files is checked.

        Raises:
            FileNotFoundError: A file of the index is missing.
            ValueError: A file is damaged, or an earlier version wrote the index.
        """
        return cls(*read_vectors(folder))
