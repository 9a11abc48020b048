"""Query → the standard library's docstrings that answer it, first retrieved and then reranked by one model.

The texts are embedded once and kept; a query then costs one forward pass to retrieve and one to rerank, which is the
point of the method and what the times shown are about.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from e2rank_st.search.index import Index

if TYPE_CHECKING:
    from e2rank_st.model import E2Rank

__all__ = ["QUERIES", "Answer", "Hit", "answer", "cache_folder", "keep_index", "kept_index"]

logger = logging.getLogger(__name__)

QUERIES = (
    "how do I run several tasks at the same time and wait for all of them",
    "count how often each word occurs",
    "split a command line into words the way a shell does",
)


@dataclass(frozen=True)
class Hit:
    """A document in the reranked list.

    Attributes:
        row: Its row in the index.
        rank: Place after reranking, from 1.
        score: Cosine of the listwise prompt and the document.
        retrieval_rank: Place after retrieval, from 1.
        retrieval_score: Cosine of the query and the document; not comparable with ``score``.
    """

    row: int
    rank: int
    score: float
    retrieval_rank: int
    retrieval_score: float


@dataclass(frozen=True)
class Answer:
    """What one query found.

    Attributes:
        hits: The best documents, best first.
        retrieval_seconds: Time to embed the query and to find the candidates.
        rerank_seconds: Time to rerank them with their stored vectors.
    """

    hits: list[Hit]
    retrieval_seconds: float
    rerank_seconds: float


def answer(model: E2Rank, index: Index, query: str, top_k: int = 10, num_candidates: int = 100) -> Answer:
    """Retrieve candidates for a query and rerank them, embedding no document.

    Args:
        model: The model that built the index.
        index: Texts and vectors to search.
        query: What is asked.
        top_k: Hits to return.
        num_candidates: Documents to retrieve and to rerank.

    Returns:
        Hits and times.
    """
    start = time.perf_counter()
    scores, ids = (found[0] for found in index.retrieve(model.encode_query([query]), num_candidates))
    retrieved = time.perf_counter()
    ranking = model.rerank(
        query,
        [index.texts[row] for row in ids],
        document_embeddings=index.embeddings[ids],
        candidate_order="given",  # they come sorted by similarity, so the query need not be embedded again
        top_k=top_k,
    )
    reranked = time.perf_counter()
    hits = [
        Hit(int(ids[place]), rank, hit["score"], place + 1, float(scores[place]))
        for rank, hit in enumerate(ranking, 1)
        for place in [hit["corpus_id"]]
    ]
    return Answer(hits, retrieved - start, reranked - retrieved)


def kept_index(model: E2Rank, texts: list[str], folder: Path) -> Index | None:
    """Load the index that ``keep_index`` kept, if it is still of use.

    Args:
        model: The model that is to search the index.
        texts: The documents it is to hold.
        folder: Where it is kept.

    Returns:
        The index, or None where there is none, it is damaged, or the model does not give its vectors any more.
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
    logger.warning("The index in %s was built by another model or of other texts; build it again.", folder)
    return None


def keep_index(index: Index, folder: Path) -> None:
    """Save an index for the next call; where that fails, the next call only takes longer.

    Args:
        index: What to keep.
        folder: Where to keep it.
    """
    try:
        index.save(folder)
    except (ValueError, OSError) as error:
        logger.warning("Could not keep the index for the next call: %s", error)


def cache_folder(model_name: str, model: E2Rank, texts: list[str]) -> Path:
    """Name the folder that keeps the index of these texts for this model, in the user's cache.

    Args:
        model_name: What the user called the model.
        model: The model.
        texts: The documents.

    Returns:
        A folder below ``$XDG_CACHE_HOME``, or else ``~/.cache``, which need not exist.
    """
    identity = json.dumps([model_name, str(model.dtype), model.max_seq_length, texts])
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "e2rank-st", f"demo-{key}")
