"""Documents longer than the model embeds → overlapping passages, and the scores of passages → those of documents.

A document is as good as its best passage, because an answer is in one place of it. A part of the remote code of a Hub
repository: see ``modeling_e2rank.py``.

Axes: B queries, N documents of one query, P passages of one document, D dimensions.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .embedding_e2rank import Embedder, cosine
from .prompts_e2rank import LONG_TOKEN, SETTLED

__all__ = ["LONG_DOCUMENTS", "Candidates", "passages"]

logger = logging.getLogger(__name__)

LONG_DOCUMENTS = ("cut", "passages")
OVERLAP = 4  # a passage repeats a quarter of the one before, so that a sentence at its end is whole in one of both


def passages(embedder: Embedder, texts: Iterable[str]) -> dict[str, list[str]]:
    """Maps each text to its passages: itself, or overlapping windows if it has more tokens than the model embeds.

    A passage ends between two tokens, and never inside a character. It fits the model with its retrieval prompt.
    """
    distinct = list(dict.fromkeys(texts))
    room = _room(embedder)
    return {
        text: [text] if room is None or len(ids) <= room else _windows(embedder, text, room)
        for text, ids in zip(distinct, embedder.ids("document", distinct), strict=True)
    }


def _room(embedder: Embedder) -> int | None:
    """The most tokens of a document with its retrieval prompt, but without special tokens."""
    limit = embedder.limit("document")
    return None if limit is None else limit - len(embedder.texts.with_special_tokens(()))


def _windows(embedder: Embedder, text: str, room: int) -> list[str]:
    found, begin = [], 0
    while True:
        size, following = _window(embedder, text, begin, room)
        found.append(text[begin : begin + size])
        if begin + size == len(text):
            return found
        begin += following


def _window(embedder: Embedder, text: str, begin: int, room: int) -> tuple[int, int]:
    """Returns how many characters the passage at ``begin`` has, and after how many the next one begins.

    Only a part of the text is tokenised at a time, because a tokenizer takes a hundred times the memory of its text.
    """
    length = LONG_TOKEN // 2 * room + SETTLED
    while True:
        part, is_rest = text[begin : begin + length], begin + length >= len(text)
        tokens = embedder.texts.own.texts([part], embedder.prompt("document"))[part]
        starts, fitting = tokens.starts, room - (len(tokens.ids) - len(tokens.starts))  # the others are the prompt's
        if (is_rest and len(starts) <= fitting) or (fitting < 1 and begin == 0):
            return len(text) - begin, 0
        if is_rest or bisect_left(starts, len(part) - SETTLED) > fitting:
            break
        length *= 4
    least = next((start for start in starts if start), len(part))  # a whole character, however many tokens it has
    count = max(fitting, 0)
    while (size := max(starts[count], least)) > least:
        # Cut from its text, a passage may have more tokens than in it.
        excess = len(embedder.ids("document", [part[:size]])[0]) - room
        if excess <= 0:
            break
        count = max(count - excess, 0)
    return size, starts[max(count - fitting // OVERLAP, 0)] or size


class Candidates:
    """The candidates of a call, whose documents have one vector each, or one for each passage.

    Args:
        embedder: Embeds the documents whose vectors are not stored.
        documents: B lists of N texts.
        stored: B matrices (N, D) of vectors, or B lists of N matrices (P, D); by default, documents are embedded.
        with_passages: Whether a long document is more than one passage. A stored matrix (N, D) has one for each.
    """

    def __init__(
        self,
        embedder: Embedder,
        documents: Sequence[Sequence[str]],
        stored: Sequence[Tensor] | Sequence[Sequence[Tensor]] | None,
        with_passages: bool,
    ) -> None:
        self.documents = documents
        self._embedder = embedder
        self._passages: dict[str, list[str]] = {}
        # For each query, the number of passages of each document; empty if a document has one vector.
        self._sizes: list[list[int]] = [[] for _ in documents]
        self._vectors: Callable[[int], Tensor]  # (N, D) of a query's documents, or of all their passages
        if stored is None and with_passages:
            self._embed_passages()
        elif stored is None:
            self._vectors = embedder.candidates(documents)
        else:
            lists = {id(part): part for part in stored if len(part)}  # nobody asks for an empty one
            joined = {key: part if isinstance(part, Tensor) else torch.cat([*part]) for key, part in lists.items()}
            self._vectors = lambda row: joined[id(stored[row])]
            self._sizes = [[] if isinstance(part, Tensor) else list(map(len, part)) for part in stored]

    def _embed_passages(self) -> None:
        lists = {id(texts): texts for texts in self.documents}  # queries may share a list
        self._passages = found = passages(self._embedder, (text for texts in lists.values() for text in texts))
        flat = {key: [passage for text in texts for passage in found[text]] for key, texts in lists.items()}
        sizes = {key: [len(found[text]) for text in texts] for key, texts in lists.items()}
        self._sizes = [sizes[id(texts)] for texts in self.documents]
        self._vectors = self._embedder.candidates([flat[id(texts)] for texts in self.documents])
        if long := [len(parts) for parts in found.values() if len(parts) > 1]:
            logger.info("Long documents: %d of %d, in %d passages.", len(long), len(found), sum(long))

    @property
    def have_passages(self) -> bool:
        """Whether a document has more than one passage, so that the query's vector chooses the one in a prompt."""
        return any(max(sizes, default=1) > 1 for sizes in self._sizes)

    def scores(self, row: int, vector: Tensor) -> Tensor:
        """Returns the cosine of each document's best passage to a vector (D,), of shape (N,)."""
        values, sizes = cosine(self._vectors(row), vector), self._sizes[row]
        if not sizes or len(sizes) == len(values):
            return values
        owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(values.device)
        return values.new_full((len(sizes),), -torch.inf).scatter_reduce(0, owners, values, "amax")

    def texts(self, row: int, indices: Sequence[int], query: Tensor) -> list[str]:
        """Returns the texts of documents for a prompt: of each, the passage that is nearest to the query's vector (D,).

        Raises:
            ValueError: If a document has more or fewer stored vectors than passages.
        """
        if not self._sizes[row]:
            return [self.documents[row][index] for index in indices]
        return [self._best(row, index, query) for index in indices]

    def _best(self, row: int, index: int, query: Tensor) -> str:
        text, sizes = self.documents[row][index], self._sizes[row]
        if text not in self._passages:
            self._passages |= passages(self._embedder, [text])
        found = self._passages[text]
        if sizes[index] != len(found):
            raise ValueError(
                f"document_embeddings has {sizes[index]} vectors for documents[{index}], which makes {len(found)} "
                f"passages with this model. Store the vectors of listwise.passages(document)."
            )
        if len(found) == 1:
            return text
        begin = sum(sizes[:index])
        nearest = cosine(self._vectors(row)[begin : begin + len(found)], query).tolist()
        return found[max(range(len(found)), key=nearest.__getitem__)]
