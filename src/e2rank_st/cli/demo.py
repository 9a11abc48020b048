"""Query → the standard library's docstrings that answer it, first retrieved and then reranked by one model.

The texts are embedded once and kept. A query then costs one forward pass to retrieve and one to rerank. That is the
strength of the method, and the demo shows the times of both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from e2rank_st.search.index import Index

if TYPE_CHECKING:
    from e2rank_st.model import E2Rank

__all__ = ["Answer", "answer", "cache_folder", "keep_index", "kept_index"]

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """The results of one query.

    Attributes:
        hits: The best documents, best first, as :meth:`~e2rank_st.search.index.Index.rerank` gives them.
        retrieval_seconds: Time to embed the query and find the candidates.
        rerank_seconds: Time to rerank them with their stored vectors.
    """

    hits: list[dict[str, Any]]
    retrieval_seconds: float
    rerank_seconds: float


def answer(model: E2Rank, index: Index, query: str, top_k: int = 10, num_candidates: int = 100) -> Answer:
    """Search as :meth:`~e2rank_st.model.E2Rank.search` does, and time both steps."""
    start = time.perf_counter()
    scores, rows = index.retrieve(model.encode_query([query]), num_candidates)
    retrieved = time.perf_counter()
    (hits,) = index.rerank(model, [query], scores, rows, top_k=top_k)
    return Answer(hits, retrieved - start, time.perf_counter() - retrieved)


def kept_index(model: E2Rank, texts: list[str], folder: Path) -> Index | None:
    """Load the index that ``keep_index`` saved, if it is still usable.

    Args:
        model: The model that will search the index.
        texts: The documents of the index.
        folder: The folder of the index.

    Returns:
        The index, or None if it is missing or damaged, or does not fit the texts or the model.
    """
    try:
        index = Index.load(folder)
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        logger.warning("%s", error)
        return None
    if index.texts == texts and index.agrees_with(model):
        return index
    logger.warning("The index in %s was built with a different model or different texts; build it again.", folder)
    return None


def keep_index(index: Index, folder: Path) -> None:
    """Save an index for the next call. If that fails, the next call only takes longer.

    Args:
        index: The index.
        folder: The folder to save it in.
    """
    try:
        index.save(folder)
    except (ValueError, OSError) as error:
        logger.warning("Could not keep the index for the next call: %s", error)


def cache_folder(model_name: str, model: E2Rank, texts: list[str]) -> Path:
    """Name the folder in the user's cache for the index of these texts and this model.

    Args:
        model_name: The user's name for the model.
        model: The model.
        texts: The documents.

    Returns:
        A folder below ``$XDG_CACHE_HOME``, or else ``~/.cache``. It may not exist yet.
    """
    identity = json.dumps([model_name, str(model.dtype), model.max_seq_length, texts])
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "e2rank-st", f"demo-{key}")
