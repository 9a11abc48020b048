"""Texts → stored vectors → the nearest texts of a query.

Reranking with E2Rank costs one forward pass a query as long as the document vectors are kept, so the index keeps them
beside their texts. Search is exact: a matrix product over all vectors, no approximation and no further dependency. For
corpora that outgrow memory use a vector database, and hand its vectors to ``rerank(document_embeddings=...)``.

Axes: B queries, N documents, D dimensions.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from e2rank_st.storage import replacing

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Index"]

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, VECTORS, TEXTS = "index.json", "embeddings.safetensors", "texts.jsonl"
SCORES_AT_ONCE = 2**24  # cells of a score matrix held at a time, 64 MiB in float32
ROUNDING = 1e-5  # more than a float32 product of unit vectors can be off
Matrix: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Index:
    """Texts and their vectors, row by row.

    Attributes:
        texts: The N documents.
        embeddings: ``(N, D)`` float32, each row of unit length (brought to it where it is not).

    Raises:
        ValueError: The texts are not strings, or the embeddings are no finite ``(N, D)`` matrix.
    """

    texts: list[str]
    embeddings: Matrix

    def __post_init__(self) -> None:
        """Check both parts and bring the vectors to unit length."""
        object.__setattr__(self, "texts", _checked_texts(self.texts))
        object.__setattr__(self, "embeddings", _unit_rows(self.embeddings))
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
            batch_size: Texts per forward pass.
            show_progress_bar: Show one on stderr; None leaves it to the level of the library's logger.

        Returns:
            The index, its rows in the order of ``texts``.

        Raises:
            ValueError: ``texts`` is empty or holds something other than strings.
        """
        texts = _checked_texts(texts)
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        # One call for distinct texts also gives duplicates the very same vector, hence the very same score.
        distinct = _embed(model, list(row_of), batch_size=batch_size, show_progress_bar=show_progress_bar)
        logger.info("embedded %d distinct of %d texts", len(row_of), len(texts))
        return cls(texts, distinct[[row_of[text] for text in texts]])

    def retrieve(self, query_embeddings: Any, top_k: int) -> tuple[Matrix, NDArray[np.int64]]:
        """Find the documents nearest to each query by cosine, exactly.

        The product over all documents only preselects. The few best are scored again, each row by itself in float64, so
        that a score does not depend on what else is in the call, and equal documents tie and keep the index's order.

        Args:
            query_embeddings: ``(B, D)`` matrix, NumPy or torch, of any float type and length.
            top_k: Documents per query; more than there are gives all of them.

        Returns:
            Scores, float32, and row numbers, int64, both ``(B, min(top_k, N))`` and best first.

        Raises:
            ValueError: The embeddings do not fit the index, or ``top_k`` is negative.
        """
        queries = _unit_rows(query_embeddings)
        if queries.shape[1] != self.dimension:
            raise ValueError(
                f"Got query embeddings of dimension {queries.shape[1]} for an index of dimension {self.dimension}; "
                "embed both with the same model."
            )
        if top_k < 0:
            raise ValueError(f"Got top_k={top_k}; give 0 or more.")
        shape = (len(queries), min(top_k, len(self)))
        scores, ids = np.empty(shape, np.float32), np.empty(shape, np.int64)
        step = max(1, SCORES_AT_ONCE // len(self))
        for start in range(0, len(queries), step):
            rough = queries[start : start + step] @ self.embeddings.T  # (b, N)
            for row, similarities in enumerate(rough, start):
                scores[row], ids[row] = self._best(queries[row], similarities, shape[1])
        return scores, ids

    def _best(self, query: Matrix, similarities: Matrix, top_k: int) -> tuple[Matrix, NDArray[np.int64]]:
        """Order the ``top_k`` best documents of one query, given the rough similarities of all N."""
        candidates = np.arange(len(self))
        if 0 < top_k < len(self):
            worst = np.partition(similarities, len(self) - top_k)[len(self) - top_k]
            candidates = np.flatnonzero(similarities >= worst - ROUNDING)
        rows = self.embeddings[candidates].astype(np.float64)
        exact = np.einsum("nd,d->n", rows, query.astype(np.float64)).astype(np.float32)
        best = np.argsort(-exact, kind="stable")[:top_k]
        return exact[best], candidates[best]

    def agrees_with(self, model: SentenceTransformer, tolerance: float = 1e-3) -> bool:
        """Tell whether ``model`` gives the stored vectors, by embedding three of the texts again.

        Names and paths do not tell: a folder may have been trained further since. The longest text is among the three,
        so that another length limit shows as well.

        Args:
            model: The model that is to embed the queries.
            tolerance: Largest difference of a cosine from 1 that rounding (bfloat16, other batches) may cause.

        Returns:
            Whether the vectors agree.
        """
        longest = max(range(len(self)), key=lambda row: len(self.texts[row]))
        rows = [0, longest, len(self) - 1]
        vectors = _unit_rows(_embed(model, [self.texts[row] for row in rows], show_progress_bar=False))
        if vectors.shape[1] != self.dimension:
            return False
        cosines = np.einsum("nd,nd->n", vectors, self.embeddings[rows])
        return bool((cosines > 1 - tolerance).all())

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to a folder, whole or not at all: a manifest, the vectors, and the texts as JSON lines.

        Args:
            folder: New or empty folder, or one that holds an index, which is replaced.

        Raises:
            ValueError: The folder holds something else.
            OSError: The folder cannot be written.
        """
        folder = Path(folder)
        others = sorted({path.name for path in folder.glob("*")} - {MANIFEST, VECTORS, TEXTS})
        if others:
            raise ValueError(f"{folder} holds other files ({others[0]}, ...); give a new folder or that of an index.")
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

        Args:
            folder: The folder given to ``save``.

        Returns:
            The index.

        Raises:
            FileNotFoundError: A file of the index is missing.
            ValueError: A file is damaged, of another format, or does not belong to the others.
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


def _embed(model: SentenceTransformer, texts: list[str], **options: Any) -> Matrix:
    """Embed texts as documents."""
    return np.asarray(model.encode_document(texts, convert_to_numpy=True, **options), dtype=np.float32)


def _checked_texts(texts: Sequence[str]) -> list[str]:
    """Copy the texts of an index, refusing what is no text."""
    if isinstance(texts, str):
        raise ValueError("Got one string for the texts of an index; give a list of strings.")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"Text {position} is a {type(text).__name__}: {text!r:.80}; give strings.")
    if not texts:
        raise ValueError("Got no texts; an index needs at least one.")
    return list(texts)


def _unit_rows(vectors: Any) -> Matrix:
    """Give a matrix as float32 with rows of unit length; a zero row, which has no direction, stays zero."""
    if hasattr(vectors, "detach"):  # torch: NumPy reads no bfloat16, no gradient and no other device
        vectors = vectors.detach().float().cpu()
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"Got embeddings of shape {matrix.shape}; give a matrix with a row for each text.")
    if not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])
        raise ValueError(f"Embedding {row} holds NaN or infinity; embed that text again.")
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)  # (rows, 1)
    # Rows of unit length are left alone, bit for bit: a saved index loads as it was.
    off = (np.abs(norms - 1) > 1e-6) & (norms > 0)
    return matrix / np.where(off, norms, np.float32(1)) if off.any() else matrix
