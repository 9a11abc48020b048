"""Texts → stored vectors → the nearest texts of a query.

With stored document vectors, reranking costs one forward pass for each query. The index therefore keeps vectors beside
their texts. Search is exact: a matrix product over all vectors, without approximation or a further dependency. If a
corpus does not fit in memory, use a vector database and pass its vectors to ``rerank(document_embeddings=...)``.

Axes: B queries, N documents, D dimensions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from e2rank_st.search.exact import nearest
from e2rank_st.search.reranking import rerank_rows
from e2rank_st.search.vectors import Matrix, Rows, embed_distinct, unit_rows
from e2rank_st.storage import replacing

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Index"]

FORMAT = 1
ROUNDING = 1e-3  # of a cosine of equal texts, as with bfloat16 or different batches
MANIFEST, VECTORS, TEXTS = "index.json", "embeddings.safetensors", "texts.jsonl"


@dataclass(frozen=True, eq=False)
class Index:
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
        object.__setattr__(self, "texts", _checked_texts(self.texts))
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
        texts: Sequence[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> Index:
        """Embed each distinct text once, as a document.

        Args:
            model: Any Sentence Transformers model; its ``encode_document`` is called.
            texts: The N documents, at least one.
            batch_size: Texts in a forward pass.
            show_progress_bar: Whether to show a bar on stderr; by default, the level of the library's logger decides.

        Raises:
            ValueError: ``texts`` is empty, or an entry is not a string.
        """
        texts = _checked_texts(texts)
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        return cls(texts, embed_distinct(model.encode_document, texts, **options))

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
        queries = unit_rows(query_embeddings)
        if queries.shape[1] != self.dimension:
            raise ValueError(
                f"Got query embeddings of dimension {queries.shape[1]} for an index of dimension {self.dimension}; "
                "embed both with the same model."
            )
        if top_k < 0:
            raise ValueError(f"Got top_k={top_k}; give 0 or more.")
        found = nearest(queries, self.embeddings, top_k)
        shape = (len(queries), min(top_k, len(self)))
        scores = np.array([part.scores for part in found], np.float32).reshape(shape)
        return scores, np.array([part.rows for part in found], np.int64).reshape(shape)

    def rerank(
        self, model: Any, queries: Sequence[str], scores: Matrix, rows: Rows, **options: Any
    ) -> list[list[dict[str, Any]]]:
        """Rerank the documents that :meth:`retrieve` found, with the stored vectors.

        Args:
            model: The model that made the vectors.
            queries: B queries.
            scores: Scores of retrieval, (B, N).
            rows: The retrieved rows, (B, N), best first.
            **options: As for ``rerank``.

        Returns:
            For each query the hits of ``rerank``. ``corpus_id`` is a row of the index. ``retrieval_rank`` (from 1) and
            ``retrieval_score`` are the document's rank and score in retrieval.
        """
        texts = [[self.texts[row] for row in part] for part in rows]
        # The rows are sorted by similarity already. "given" keeps their order without embedding the query again.
        options = {"candidate_order": "given", **options}
        rankings = rerank_rows(model, queries, list(rows), texts, [self.embeddings[part] for part in rows], **options)
        for ranking, part, similar in zip(rankings, rows.tolist(), scores.tolist(), strict=True):
            places = {row: place for place, row in enumerate(part)}
            for hit in ranking:
                place = places[hit["corpus_id"]]
                hit |= {"retrieval_rank": place + 1, "retrieval_score": similar[place]}
        return rankings

    def agrees_with(self, model: SentenceTransformer) -> bool:
        """Test whether ``model`` gives the stored vectors, by embedding three texts again.

        A name or path is not enough: the model in a folder may have been trained further. The longest text is one of
        the three, because it shows a different length limit.
        """
        longest = max(range(len(self)), key=lambda row: len(self.texts[row]))
        rows = [0, longest, len(self) - 1]
        vectors = embed_distinct(model.encode_document, [self.texts[row] for row in rows], show_progress_bar=False)
        if vectors.shape[1] != self.dimension:
            return False
        cosines = np.einsum("nd,nd->n", vectors, self.embeddings[rows])
        return bool((cosines > 1 - ROUNDING).all())

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to a folder, whole or not at all: a manifest, the vectors, and the texts as JSON lines.

        Args:
            folder: A new or empty folder, or the folder of an index, which is replaced.

        Raises:
            ValueError: The folder holds other files.
            OSError: The folder cannot be written.
        """
        folder = Path(folder)
        others = sorted({path.name for path in folder.glob("*")} - {MANIFEST, VECTORS, TEXTS})
        if others:
            raise ValueError(f"{folder} holds other files ({others[0]}, ...); give a new folder or an index's folder.")
        manifest = {"format": FORMAT, "documents": len(self), "dimension": self.dimension}
        with replacing(folder) as fresh:
            fresh.mkdir()
            save_file({"embeddings": self.embeddings}, fresh / VECTORS)
            with (fresh / TEXTS).open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(text) + "\n" for text in self.texts)
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Index:
        """Read an index that ``save`` wrote.

        Raises:
            FileNotFoundError: A file of the index is missing.
            ValueError: A file is damaged, has a different format, or does not match the rest.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            texts = [json.loads(line) for line in (folder / TEXTS).read_text(encoding="utf-8").splitlines()]
            embeddings = load_file(folder / VECTORS)["embeddings"]
            index = cls(texts, embeddings)
        except (ValueError, KeyError, SafetensorError) as error:
            raise ValueError(f"The index in {folder} is damaged ({error}); build and save it again.") from error
        found = {"format": FORMAT, "documents": len(index), "dimension": index.dimension}
        if manifest != found:
            raise ValueError(
                f"The index in {folder} does not match its {MANIFEST}: got {found}, expected {manifest}; "
                "build and save it again."
            )
        return index


def _checked_texts(texts: Sequence[str]) -> list[str]:
    """Copy the texts of an index; refuse anything but strings."""
    if isinstance(texts, str):
        raise ValueError("Got one string as the texts of an index; give a list of strings.")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"Text {position} is a {type(text).__name__}: {text!r:.80}; give strings.")
    if not texts:
        raise ValueError("Got no texts; an index needs at least one.")
    return list(texts)
