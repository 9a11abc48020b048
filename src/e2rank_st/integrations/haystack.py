"""Documents that a Haystack retriever found → the same ones, reranked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from e2rank_st.integrations.ranking import loaded, ranked
from e2rank_st.model import E2Rank

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ModuleNotFoundError as error:
    raise ImportError("This needs Haystack: pip install 'e2rank-st[haystack]'") from error

__all__ = ["E2RankRanker"]

PARAMETERS = ("model", "top_k", "title_meta_field", "use_embeddings", "options", "load_options")


@component
class E2RankRanker:
    """Reranks documents, with the vectors in their ``embedding``.

    The documents' scores by the retriever are the first stage's: they count if ``first_stage_weight`` is above 0.

    Args:
        model: The name of a model, loaded at the first run: ``"bundled"``, a folder, or a Hub id. Or a model itself;
            then a pipeline with it cannot be written to a file.
        top_k: Most documents; by default all.
        title_meta_field: The field of ``meta`` with a title, which is ranked with the text.
        use_embeddings: Whether the vectors in the documents are this model's. Documents without one are embedded.
        options: Options of :meth:`~e2rank_st.E2Rank.rerank`, such as ``{"query_weight": 0.5}``.
        load_options: Options of :func:`~e2rank_st.load_model`, such as ``{"device": "cuda"}``.
    """

    def __init__(
        self,
        model: E2Rank | str = "bundled",
        *,
        top_k: int | None = None,
        title_meta_field: str | None = None,
        use_embeddings: bool = True,
        options: dict[str, Any] | None = None,
        load_options: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.top_k = top_k
        self.title_meta_field = title_meta_field
        self.use_embeddings = use_embeddings
        self.options = options or {}
        self.load_options = load_options or {}
        self._model: E2Rank | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a pipeline's file holds it. A model itself raises ``ValueError``."""
        if not isinstance(self.model, str):
            raise ValueError("Got a model itself, which no file can hold. Save it, and give the path of its folder.")
        return default_to_dict(self, **{name: value for name, value in vars(self).items() if name in PARAMETERS})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> E2RankRanker:
        """Return the component that :meth:`to_dict` wrote. Its model is loaded at the first run."""
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Load the model, if it is not loaded yet; the errors are those of :func:`~e2rank_st.load_model`."""
        if self._model is None:
            self._model = loaded(self.model, **self.load_options)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Rerank documents. Of several with one id, as two retrievers find them, one is kept.

        Args:
            query: The query.
            documents: The documents, which stay as they are.
            top_k: Most documents, instead of the component's.

        Returns:
            ``documents``: copies of the best ones with their scores, best first.

        Raises:
            ValueError: A document does not have a text, or a vector is not one of this model.
        """
        self.warm_up()
        assert self._model is not None
        found = _distinct(documents)
        hits = ranked(
            self._model,
            query,
            [one.content for one in found],
            titles=[one.meta.get(self.title_meta_field) for one in found] if self.title_meta_field else None,
            vectors=[one.embedding for one in found] if self.use_embeddings else None,
            scores=[one.score for one in found],
            top_k=self.top_k if top_k is None else top_k,
            options=self.options,
        )
        return {"documents": [replace(found[hit["corpus_id"]], score=hit["score"]) for hit in hits]}


def _distinct(documents: list[Document]) -> list[Document]:
    """The first document of each id; a later one that has a vector replaces one that does not."""
    found: dict[str, Document] = {}
    for document in documents:
        if document.id not in found or (found[document.id].embedding is None and document.embedding is not None):
            found[document.id] = document
    return list(found.values())
