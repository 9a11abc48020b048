"""What a framework hands over → a ranking: the part that the integrations share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from e2rank_st.documents_e2rank import Document
from e2rank_st.loading import load_model
from e2rank_st.model import E2Rank

__all__ = ["loaded", "ranked"]

logger = logging.getLogger(__name__)


def loaded(model: E2Rank | str, **options: Any) -> E2Rank:
    """Return a model as it is, or load it by its name.

    Args:
        model: A model, or its name: ``"bundled"``, a folder, or a Hub id.
        **options: As for :func:`~e2rank_st.load_model`, with a name.

    Raises:
        ValueError: It is neither a model nor such a name.
        OSError: The model cannot be loaded.
        ImportError: The bundled model's weights are not installed, and the Hub is not reachable.
    """
    return model if isinstance(model, E2Rank) else load_model(model, **options)


def ranked(
    model: E2Rank,
    query: str,
    texts: Sequence[Any],
    *,
    titles: Sequence[str | None] | None = None,
    vectors: Sequence[Any] | None = None,
    scores: Sequence[float | None] | None = None,
    top_k: int | None = None,
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Rank the documents that a framework found.

    Args:
        model: The model.
        query: The query.
        texts: Their N texts.
        titles: Their N titles, which are ranked with the texts; by default there are none.
        vectors: Their N stored vectors. The model embeds a document whose vector is ``None`` or empty; without any
            vectors, it embeds all.
        scores: N scores of the first stage, greater is better. They count only if none is ``None``.
        top_k: Most hits; by default all.
        options: Further options of ``rerank``.

    Returns:
        The hits of ``rerank``: ``corpus_id`` is a document's place.

    Raises:
        TypeError: An option is unknown.
        ValueError: ``rerank`` refuses a text, a vector or an option; or there are more or fewer vectors than documents.
    """
    documents = texts
    if titles is not None:
        documents = [{"text": text, "title": title} for text, title in zip(texts, titles, strict=True)]
    known = None if scores is None or any(score is None for score in scores) else list(scores)
    stored = None if vectors is None else _complete(model, documents, vectors, options)
    given: dict[str, Any] = {"document_embeddings": stored, "first_stage_scores": known, "show_progress_bar": False}
    return model.rerank(query, documents, top_k=top_k, **{**given, **options})


def _complete(
    model: E2Rank, documents: Sequence[Document], vectors: Sequence[Any], options: Mapping[str, Any]
) -> Sequence[Any] | None:
    """The vectors of all documents; ``None`` if ``rerank`` has to embed them all."""
    if len(vectors) != len(documents):
        raise ValueError(f"Got {len(vectors)} vectors for {len(documents)} documents; give one for each, or None.")
    missing = [place for place, vector in enumerate(vectors) if vector is None or not len(vector)]
    if not missing:
        return vectors
    logger.info("Embedding documents that came without vectors: %d of %d.", len(missing), len(documents))
    in_passages = (options.get("long_documents") or model.listwise.long_documents) == "passages"
    if in_passages or len(missing) == len(documents):  # one call takes passages of all documents, or of none
        return None
    texts = [model.listwise.document_text(documents[place]) for place in missing]
    embedded = model.encode_document(texts, batch_size=options.get("batch_size", 32), show_progress_bar=False)
    rows = dict(zip(missing, embedded, strict=True))
    return [rows.get(place, vector) for place, vector in enumerate(vectors)]
