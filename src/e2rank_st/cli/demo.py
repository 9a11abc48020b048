"""Query → the standard library's docstrings that answer it, first retrieved and then reranked by one model.

The texts are embedded once and kept. A query then costs one forward pass to retrieve and one to rerank. That is the
strength of the method, and the demo shows the times of both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2rank_st.console import one_line
from e2rank_st.search.index import Index

if TYPE_CHECKING:
    from e2rank_st.model import E2Rank

__all__ = ["answer", "stored_index"]

logger = logging.getLogger(__name__)


def answer(
    model: E2Rank, index: Index, query: str, top_k: int = 10, num_candidates: int = 100
) -> tuple[list[dict[str, Any]], float, float]:
    """Search as :meth:`~e2rank_st.model.E2Rank.search` does, and time both steps.

    Returns:
        The hits, best first; the seconds of retrieval, and those of reranking with the stored vectors.
    """
    start = time.perf_counter()
    scores, rows = index.retrieve(model.encode_query([query]), num_candidates)
    retrieved = time.perf_counter()
    (hits,) = index.rerank(model, [query], scores, rows, top_k=top_k)
    return hits, retrieved - start, time.perf_counter() - retrieved


def stored_index(model: E2Rank, texts: list[str], model_name: str | None, batch_size: int = 32) -> Index:
    """Load the index of these texts from the user's cache, or build it and keep it there.

    An index that is damaged, of other texts, or that the model would not build, is built again. If it cannot be kept,
    the next call only takes longer.

    Args:
        model: The model that will search the index.
        texts: The documents.
        model_name: The user's name for the model; None does not use the cache.
        batch_size: Texts in a forward pass.
    """
    folder = None
    try:
        if model_name is not None:
            folder = _cache_folder(model_name, model, texts)
    except RuntimeError as error:  # Python does not find a home folder
        logger.warning("Cannot keep the index for the next call: %s", error)
    if folder and (kept := _kept_index(folder, model, texts)):
        return kept
    index = Index.build(model, texts, batch_size, show_progress_bar=sys.stderr.isatty())
    try:
        if folder:
            index.save(folder)
    except (ValueError, OSError) as error:
        logger.warning("Could not keep the index for the next call: %s", one_line(error))
    return index


def _kept_index(folder: Path, model: E2Rank, texts: list[str]) -> Index | None:
    """Load the index, if it is whole and of this model and these texts."""
    try:
        index = Index.load(folder)
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        logger.warning("The index is built again: %s", one_line(error))
        return None
    if index.texts == texts and index.agrees_with(model):
        return index
    logger.warning("The index in %s was built with a different model or other texts; it is built again.", folder)
    return None


def _cache_folder(model_name: str, model: E2Rank, texts: list[str]) -> Path:
    """Name the folder for these texts and this model, below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    identity = json.dumps([model_name, str(model.dtype), model.max_seq_length, texts])
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "e2rank-st", f"demo-{key}")
