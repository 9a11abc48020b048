"""A query and an index → the order of the first stage beside the reranked one, what the prompt held, and the times.

Axes: N candidates, K documents in the prompt.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from e2rank_st.data.files import text_field
from e2rank_st.passages_e2rank import Candidates
from e2rank_st.search.index import SearchIndex
from e2rank_st.search.maker import listwise_of
from e2rank_st.search.store import Found

__all__ = ["SPLITS", "Comparison", "Place", "Prompt", "compare", "index_of", "split"]

NUM_CANDIDATES = 100
MAX_QUERY = 2_000  # characters
MAX_DOCUMENTS, MAX_CHARACTERS = 500, 200_000  # of pasted texts, which are embedded while somebody waits
SPLITS = {"lines": re.compile(r"\n"), "paragraphs": re.compile(r"\n[^\S\n]*\n")}  # what stands between two documents


@dataclass(frozen=True)
class Place:
    """A document in both orders.

    Attributes:
        name: Its title, or else its id.
        text: Its text.
        rank: Its place after reranking, from 1.
        retrieval_rank: Its place in the first stage, from 1.
        score: What the reranked order is sorted by.
        similarity: Its cosine to the query, by which the first stage is sorted.
    """

    name: str
    text: str
    rank: int
    retrieval_rank: int
    score: float
    similarity: float

    @property
    def moved(self) -> int:
        """The places by which reranking lifted it; below 0 if it fell."""
        return self.retrieval_rank - self.rank


class Prompt(NamedTuple):
    """What the listwise prompt held.

    Attributes:
        text: The prompt, without the chat template around it.
        num_tokens: Its tokens, special ones included.
        cuts: For each of its documents, in the order of the first stage, whether it was shortened to fit.
    """

    text: str
    num_tokens: int
    cuts: tuple[bool, ...]


@dataclass(frozen=True)
class Comparison:
    """What a search found, and how.

    Attributes:
        reranked: The N candidates, best first.
        prompt: What the prompt held.
        num_documents: Number of documents of the collection.
        retrieval_seconds: Time of the first stage alone.
        seconds: Time of first stage and reranking together.
    """

    reranked: list[Place]
    prompt: Prompt
    num_documents: int
    retrieval_seconds: float
    seconds: float

    @property
    def retrieved(self) -> list[Place]:
        """The candidates in the order of the first stage."""
        return sorted(self.reranked, key=lambda place: place.retrieval_rank)


def compare(
    index: SearchIndex,
    query: str,
    num_prompt_documents: int | None = None,
    first_stage_weight: float | None = None,
    num_candidates: int = NUM_CANDIDATES,
) -> Comparison:
    """Search an index, and tell what reranking changed.

    Args:
        index: The index, with its model.
        query: The query.
        num_prompt_documents: K; by default as the model has it.
        first_stage_weight: Share of the first stage's scores in the final ones; by default as the model has it.
        num_candidates: N, at most.

    Raises:
        ValueError: The query is empty or too long, the index is empty, or a number is not allowed.
        OSError: The index cannot be read.
    """
    if not query.strip():
        raise ValueError("The query is empty. Type a question or some words.")
    if len(query) > MAX_QUERY:
        raise ValueError(f"The query has {len(query):,} characters; the most is {MAX_QUERY:,}. Shorten it.")
    text_field({"query": query}, "query")
    if not len(index):
        raise ValueError("The collection holds no documents. Add some first.")
    options: dict[str, Any] = {"first_stage_weight": first_stage_weight, "num_prompt_documents": num_prompt_documents}
    start = time.perf_counter()
    hits = index.search(query, num_candidates, num_candidates, **options)
    between = time.perf_counter()
    (found,) = index.retrieve([query], num_candidates)
    end = time.perf_counter()
    return Comparison(
        [_place(rank, hit) for rank, hit in enumerate(hits, 1)],
        _prompt(index, query, found, num_prompt_documents),
        len(index),
        end - between,
        between - start,
    )


def _place(rank: int, hit: dict[str, Any]) -> Place:
    name = hit["title"] or hit["id"]
    return Place(name, hit["text"], rank, hit["retrieval_rank"], hit["score"], hit["similarity"])


@torch.inference_mode()
def _prompt(index: SearchIndex, query: str, found: Sequence[Found], count: int | None) -> Prompt:
    """Build the prompt of a search again, to show it."""
    listwise = listwise_of(index.model)
    chosen = found[: listwise.num_prompt_documents if count is None else count]
    texts = [index.text(part.entry.record) for part in chosen]
    embedder = listwise.embedder()
    if index.settings["long_documents"] == "passages":
        stored = [[torch.from_numpy(part.entry.vectors) for part in chosen]]
        vector = embedder.embed_texts("query", [query])[0]
        texts = Candidates(embedder, [texts], stored, True).texts(0, range(len(texts)), vector)
    (built,) = embedder.prompts([query], [texts], listwise.instruction)
    cuts = [False] * len(texts)
    if shares := built.document_shares:
        held = max((number for number, share in enumerate(shares, 1) if share), default=0)  # the rest found no room
        cuts = [share < size for share, size in zip(shares[:held], built.document_tokens, strict=False)]
        tokens = embedder.tokens("document", texts[:held])
        texts = [part.head(share) for part, share in zip(tokens, shares, strict=False)]
    (asked,) = embedder.tokens("query", [query])
    text = embedder.builder.format.render(listwise.instruction, asked.head(built.query_share), texts)
    return Prompt(text, len(built.ids), tuple(cuts))


def split(text: str, by: str) -> list[str]:
    """Split a pasted text into documents.

    Args:
        text: The text.
        by: ``"lines"``, or ``"paragraphs"``, between which a line is blank.

    Raises:
        ValueError: There are no documents, or too many, or they are too long.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"The pasted text has {len(text):,} characters; the most is {MAX_CHARACTERS:,}. "
            "Paste less, or make an index with 'e2rank index'."
        )
    parts = SPLITS[by].split("\n".join(text.splitlines()))
    documents = [part.strip() for part in parts if part.strip()]
    if not documents:
        raise ValueError("There are no documents. Paste some texts, one document a line or a paragraph.")
    if len(documents) > MAX_DOCUMENTS:
        raise ValueError(
            f"The pasted text has {len(documents):,} documents; the most is {MAX_DOCUMENTS:,}. "
            "Paste fewer, or make an index with 'e2rank index'."
        )
    return documents


def index_of(model: Any, texts: Sequence[str]) -> SearchIndex:
    """Make an index in memory of texts, each named by its number.

    Raises:
        DataError: A text holds half a character.
    """
    documents = [{"id": f"document {number}", "text": text} for number, text in enumerate(texts, 1)]
    return SearchIndex.create(None, model, documents, show_progress_bar=False)
