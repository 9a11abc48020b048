"""Texts → stored vectors → the nearest texts of a query.

With stored document vectors, reranking costs one forward pass for each query. The index therefore keeps vectors beside
their texts. Search is exact: a matrix product over all vectors, without approximation or a further dependency. If a
corpus does not fit in memory, use a vector database and pass its vectors to ``rerank(document_embeddings=...)``.

Axes: B queries, N documents, D dimensions.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from e2rank_st.arguments_e2rank import natural
from e2rank_st.search.exact import nearest
from e2rank_st.search.folder import read_index, write_index
from e2rank_st.search.maker import Maker, describe, differences
from e2rank_st.search.reranking import rerank_rows
from e2rank_st.search.vectors import Matrix, Rows, embed_distinct, read_texts, unit_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Index"]

# Largest 1 − cosine of a text's vectors by one model: with different batches in float32, and else.
ROUNDING = {"torch.float32": 1e-5}
COARSE_ROUNDING = 1e-3
PROBES = 4  # texts to embed again, besides the longest


@dataclass(frozen=True, eq=False)
class Index:
    """Texts and their vectors, row by row, in the order of the texts.

    Attributes:
        texts: The N documents.
        embeddings: ``(N, D)`` float32; each row is normalised to unit length.
        maker: Description of the model that made the vectors; None if they were given without it.

    Raises:
        ValueError: The texts are not strings, or the embeddings are not a finite ``(N, D)`` matrix.
    """

    texts: list[str]
    embeddings: Matrix
    maker: Maker | None = None

    def __post_init__(self) -> None:
        """Check both parts, and normalise the vectors."""
        object.__setattr__(self, "texts", read_texts(self.texts))
        object.__setattr__(self, "embeddings", unit_rows(self.embeddings))
        if not isinstance(self.maker, (Mapping, type(None))):
            raise ValueError(f"maker must describe a model, got {self.maker!r:.80}. Leave it out, or use Index.build.")
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
    ) -> Index:
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
        return cls(texts, embed_distinct(model.encode_document, texts, **options), describe(model))

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

    def rerank(
        self, model: Any, queries: Sequence[str], scores: Matrix, rows: Rows, **options: Any
    ) -> list[list[dict[str, Any]]]:
        """Rerank the documents that :meth:`retrieve` found, with the stored vectors.

        Args:
            model: The model that made the vectors.
            queries: B queries.
            scores: Scores of retrieval, (B, N).
            rows: The retrieved rows, (B, N), best first.
            **options: As for ``rerank``, except ``document_embeddings`` and ``first_stage_scores``.

        Returns:
            For each query the hits of ``rerank``. ``corpus_id`` is a row of the index. ``retrieval_rank`` (from 1) and
            ``retrieval_score`` are the document's rank and score in retrieval, and the first stage's score for
            ``first_stage_weight``. It is the cosine to the query, so it is the ``similarity`` if ``rerank`` gave none.

        Raises:
            ValueError: The model did not make the vectors: see :meth:`check`.
        """
        self.check(model)
        texts = [[self.texts[row] for row in part] for part in rows]
        # The rows are sorted by similarity already. "given" keeps their order without embedding the query again.
        options = {"candidate_order": "given", **options, "first_stage_scores": scores}
        rankings = rerank_rows(model, queries, list(rows), texts, [self.embeddings[part] for part in rows], **options)
        for ranking, part, similar in zip(rankings, rows.tolist(), scores.tolist(), strict=True):
            places = {row: place for place, row in enumerate(part)}
            for hit in ranking:
                place = places[hit["corpus_id"]]
                hit.setdefault("similarity", similar[place])
                hit |= {"retrieval_rank": place + 1, "retrieval_score": similar[place]}
        return rankings

    def check(self, model: SentenceTransformer) -> None:
        """Refuse a model that would give different document vectors.

        A model of the same description as the maker passes. Any other model embeds a few texts again: it passes if they
        get the stored vectors, as with a merged adapter, or in bfloat16. This is done once for each model, and again
        after a change of the model's description.

        Raises:
            ValueError: The vectors are different; the message names the parts of the description that differ.
        """
        if self.agrees_with(model):
            return
        reason = "nothing is known about the model that made them"
        if self.maker is not None:
            reason = f"it differs in {differences(self.maker, describe(model))}"
        raise ValueError(
            f"The model does not give the vectors of this index: {reason}. Build the index again with this model, or "
            "use the model that made it."
        )

    def agrees_with(self, model: SentenceTransformer) -> bool:
        """Test whether ``model`` gives the stored vectors, as :meth:`check` does."""
        found = describe(model)
        if found == self.maker:
            return True
        with _CHECKING:
            known = _FOUND.setdefault(self, WeakKeyDictionary())
            if model not in known or known[model][0] != found:
                known[model] = found, self._gives_vectors(model, found)
            return known[model][1]

    def _gives_vectors(self, model: SentenceTransformer, found: Maker) -> bool:
        # The longest texts show a different length limit. Characters and bytes differ by language.
        longest = {max(range(len(self)), key=lambda row: size(self.texts[row])) for size in (len, _num_bytes)}
        rows = sorted({*longest, *np.linspace(0, len(self) - 1, PROBES).astype(int).tolist()})
        vectors = embed_distinct(model.encode_document, [self.texts[row] for row in rows], show_progress_bar=False)
        if vectors.shape[1] != self.dimension:
            return False
        same_type = self.maker is not None and self.maker.get("dtype") == found["dtype"]
        allowed = ROUNDING.get(found["dtype"], COARSE_ROUNDING) if same_type else COARSE_ROUNDING
        apart = vectors.astype(np.float64) - self.embeddings[rows]
        # Half the square is 1 − cosine for unit vectors, and 0 for two vectors of zeros.
        return bool(((apart**2).sum(axis=1) / 2 < allowed).all())

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to a folder, whole or not at all: a manifest, the vectors, and the texts as JSON lines.

        Args:
            folder: A new or empty folder, or the folder of an index, which is replaced.

        Raises:
            ValueError: The folder holds other files.
            OSError: The folder cannot be written.
        """
        write_index(folder, self.texts, self.embeddings, self.maker)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Index:
        """Read an index that ``save`` wrote; each bit of its files is checked.

        Raises:
            FileNotFoundError: A file of the index is missing.
            ValueError: A file is damaged, or an earlier version wrote the index.
        """
        return cls(*read_index(folder))


# Outside the index, since a lock cannot be copied: for each index, each model's description and whether it agrees.
_FOUND: WeakKeyDictionary[Index, WeakKeyDictionary[Any, tuple[Maker, bool]]] = WeakKeyDictionary()
_CHECKING = threading.Lock()


def _num_bytes(text: str) -> int:
    return len(text.encode())
