"""A model's vectors of texts → kept on disk, so that no run embeds again what another one has embedded."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from e2rank_st.search.maker import describe
from e2rank_st.search.texts import TextVectors
from e2rank_st.search.vectors import embed_distinct

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Kind", "kept_vectors"]

logger = logging.getLogger(__name__)

Kind: TypeAlias = Literal["documents", "query"]


def kept_vectors(
    model: SentenceTransformer,
    texts: Iterable[str],
    folder: Path,
    kind: Kind = "documents",
    *,
    name: str = "",
    precision: str = "",
    **options: Any,
) -> TextVectors:
    """Embed texts, or take the vectors that an earlier call with the same model and texts kept.

    Args:
        model: The model. Its prompt adapter does not count, since no document or query goes through it.
        texts: The texts; each is embedded once.
        folder: Where vectors are kept: a folder for each model and set of texts.
        kind: What the texts are to the model.
        name: Name of the texts' source, for the log.
        precision: Name of the precision of the forward passes, if it is not that of the weights.
        **options: Those of :func:`~e2rank_st.search.vectors.embed_distinct`, such as ``batch_size``.

    Returns:
        The distinct texts with their vectors, in any order.

    Raises:
        ValueError: There are no texts, or the kept vectors are damaged.
        OSError: The folder cannot be read or written.
    """
    texts = sorted(set(texts))
    prompts = dict(model.prompts) if kind == "query" else {}  # the description has the documents' prompt
    key = json.dumps([describe(model), prompts, precision, kind, texts], sort_keys=True)
    kept = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not kept.exists():
        logger.info("%s: embedding %s, %d texts; kept in %s", name or "texts", kind, len(texts), kept)
        task: Literal["document", "query"] = "document" if kind == "documents" else "query"
        TextVectors(texts, embed_distinct(model, texts, task, **options)).save(kept)
    return TextVectors.load(kept)
