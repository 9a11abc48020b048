"""Documents that a LangChain retriever found → the same ones, reranked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from e2rank_st.integrations.ranking import loaded, ranked
from e2rank_st.model import E2Rank

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from pydantic import ConfigDict, Field
except ModuleNotFoundError as error:
    raise ImportError("This needs LangChain: pip install 'e2rank-st[langchain]'") from error

__all__ = ["E2RankCompressor"]


class E2RankCompressor(BaseDocumentCompressor):
    """Reranks documents. Each result is a copy with its score as ``relevance_score`` in the metadata.

    Args:
        model: A model, or its name: ``"bundled"``, a folder, or a Hub id.
        top_n: Most documents; by default all.
        title_key: The metadata's key of a title, which is ranked with the text.
        embeddings: Where this model's vectors of the documents are: the metadata's key, or a function that takes the
            documents and returns a vector or ``None`` for each. What has none is embedded; by default all documents.
        options: Options of :meth:`~e2rank_st.E2Rank.rerank`, such as ``{"query_weight": 0.5}``.

    Raises:
        ValueError: The model or a field is not one of those above.
        OSError: The model cannot be loaded.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: E2Rank = Field(repr=False)
    top_n: int | None = None
    title_key: str | None = None
    embeddings: str | Callable[[Sequence[Document]], Sequence[Any]] | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    def __init__(self, model: E2Rank | str, **fields: Any) -> None:
        fields["model"] = loaded(model)
        super().__init__(**fields)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Rerank documents. ``acompress_documents`` does the same in a thread, and the event loop goes on.

        Args:
            documents: The documents, which stay as they are.
            query: The query.
            callbacks: Not used.

        Returns:
            Copies of the best documents, best first.

        Raises:
            ValueError: A title is not a text, or a vector is not one of this model.
        """
        hits = ranked(
            self.model,
            query,
            [document.page_content for document in documents],
            titles=None if self.title_key is None else _field(documents, self.title_key),
            vectors=self._vectors(documents),
            top_k=self.top_n,
            options=self.options,
        )
        return [_scored(documents[hit["corpus_id"]], hit["score"]) for hit in hits]

    def _vectors(self, documents: Sequence[Document]) -> Sequence[Any] | None:
        if isinstance(self.embeddings, str):
            return _field(documents, self.embeddings)
        return None if self.embeddings is None else self.embeddings(documents)


def _field(documents: Sequence[Document], key: str) -> list[Any]:
    return [document.metadata.get(key) for document in documents]


def _scored(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, "relevance_score": score}})
