"""Slates → batches for the loss: queries, listwise prompts and documents as token ids, and their labels.

The model's own prompt builder makes the prompts, from the documents that reranking would show it. So the prompts of
training are those of inference, unless a form or instructions for training alone are given. All random draws depend on
seed, epoch and query alone: a resumed run sees the same batches, and so does a run with a different number of
data-loader workers.

Axes: B slates, N documents of the longest slate of a batch, K documents in a prompt, L tokens, D dimensions.
"""

from __future__ import annotations

import logging
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor

from e2rank_st.checkpoints import instruction_template
from e2rank_st.console import progress_wanted
from e2rank_st.embedding_e2rank import Embedder, cosine
from e2rank_st.model import E2Rank
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.prompts_e2rank import PromptBuilder, TokenizedText
from e2rank_st.search.texts import TextVectors
from e2rank_st.search.vectors import distinct, embed_distinct
from e2rank_st.storage import text_id
from e2rank_st.training.labels import PADDING, SlateLabels
from e2rank_st.training.losses import COLUMNS

__all__ = ["SlateCollator", "prompt_orders", "sample_documents"]

logger = logging.getLogger(__name__)

FILLER = "."  # the document of a row that only fills up a shorter slate
GUARDED_EVERY = 4  # slates for one guarded document, which costs two forward passes of its whole length
DEFAULT_SOURCE = "default"  # whose instructions all sources have that are not named
Row = Mapping[str, Any]


class Wording(NamedTuple):
    """The text before a query in retrieval, and the instruction of a listwise prompt."""

    query_prompt: str
    instruction: str


@dataclass(kw_only=True)
class SlateCollator(SentenceTransformerDataCollator):
    """Collates slates for :class:`~e2rank_st.training.losses.E2RankLoss`.

    A row has the columns ``query``, ``documents`` (a list), ``labels`` (a number or None for each document), ``gold``
    (a flag for each document), and optionally ``prompt_order``: places in ``documents``, in the order in which the
    prompt takes them, as :func:`prompt_orders` computes it. Without it the documents are taken as they stand.

    The prompt shows the first K of the whole slate, as reranking does, even if they are not drawn to be scored. K is
    the model's.

    Args:
        model: The model whose tokenizer, prompts, lengths and listwise configuration count.
        documents_per_slate: Most documents of a slate that are scored; of a longer slate some are drawn.
        random_prompt_size: Share of prompts that show a random number of documents, from 1 to K.
        seed: Seed of all draws.
        columns: The columns that the loss needs.
        frozen: Documents and their vectors, for a loss with frozen documents.
        frozen_queries: Queries and their vectors, where these stay, too.
        prompt: Fields of the prompt's format in training; by default it is the model's.
        instructions: For a source (``dataset_name`` of a row), or ``"default"``, the instruction of its queries and
            that of its listwise prompts; by default the model's.
        fill_up: Fill up all slates to ``documents_per_slate``, not only to the longest of the batch. Processes that
            share the weights need it: they have to make the same forward passes.

    Raises:
        ValueError: A value is not allowed.
    """

    preprocess_fn: Callable[..., Any] = field(init=False, repr=False)
    model: E2Rank = field(repr=False)
    documents_per_slate: int = 16
    random_prompt_size: float = 0.0
    seed: int = 0
    columns: tuple[str, ...] = COLUMNS[:3]
    frozen: TextVectors | None = field(default=None, repr=False)
    frozen_queries: TextVectors | None = field(default=None, repr=False)
    prompt: Mapping[str, Any] | None = None
    instructions: Mapping[str, Sequence[str]] | None = None
    fill_up: bool = False

    def __post_init__(self) -> None:
        """Check the values, and make what all batches share."""
        self.preprocess_fn = self.model.preprocess
        if self.documents_per_slate < 1:
            raise ValueError(f"documents_per_slate must be at least 1, got {self.documents_per_slate}.")
        if not 0 <= self.random_prompt_size <= 1:
            raise ValueError(f"random_prompt_size must be a share from 0 to 1, got {self.random_prompt_size}.")
        self._builder = self.model.listwise.builder
        if self.prompt is not None:
            shared = self._builder
            form = ListwiseRerank(self.prompt).format
            self._builder = PromptBuilder(shared.texts, form, shared.max_tokens, shared.max_query_tokens)
        self._wordings = _wordings(self.instructions or {}, self.model.prompts.get("query"))
        # Shared memory: workers that outlive an epoch have to see the next one begin.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def check_sources(self, sources: Iterable[str]) -> None:
        """Refuse sources without instructions, where instructions go by source.

        Raises:
            ValueError: A source has none; the message names it.
        """
        missing = sorted(set(sources) - self._wordings.keys())
        if self._wordings and missing and DEFAULT_SOURCE not in self._wordings:
            raise ValueError(
                f"The sources {', '.join(missing)} have no instructions; there are some for "
                f"{', '.join(self._wordings)}. Add them, or an entry {DEFAULT_SOURCE!r} for all further sources."
            )

    def _wording(self, row: Row) -> Wording:
        """The wording of a row's source, or the model's."""
        if not self._wordings:
            return Wording(self.model.prompts.get("query") or "", self.model.listwise.instruction)
        source = str(row.get("dataset_name"))
        self.check_sources([source])
        return self._wordings.get(source) or self._wordings[DEFAULT_SOURCE]

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 0: each has its own draws."""
        self._epoch.fill_(epoch)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate B rows.

        Returns:
            ``label`` ``(B, N, 3)``, see :meth:`~e2rank_st.training.labels.SlateLabels.pack`; then, for each column,
            ``{column}_input_ids`` and ``{column}_attention_mask``: ``(B, L)`` for ``query`` and ``listwise``,
            ``(B·N, L)`` for ``documents``, slate by slate, short ones filled up with rows of :data:`FILLER`. Where
            documents are frozen, ``documents_sentence_embedding`` ``(B·N, D)`` in their place, and a document of every
            fourth slate as ``guarded``, ``(G, L)``; where queries are, ``query_sentence_embedding`` ``(B, D)``. Also
            ``dataset_name`` where the rows have it.

        Raises:
            KeyError: A row lacks a column, or the vector of a document is missing.
            ValueError: The lists of a row differ in length, or its prompt order names no document.
        """
        for row in features:
            _check(row)
        epoch = int(self._epoch)
        draws = [random.Random(text_id(f"{self.seed} {epoch} {row['query']}")) for row in features]
        slates = [
            sample_documents(row, self.documents_per_slate, draw) for row, draw in zip(features, draws, strict=True)
        ]
        batch: dict[str, Any] = {"label": _labels(features, slates, self._slate_size(slates))}
        if "dataset_name" in features[0]:
            batch["dataset_name"] = features[0]["dataset_name"]
        embedder = Embedder(self.model, self.model, self._builder, 1, False)  # for its tokens: nothing is embedded here
        for column in (name for name in COLUMNS if name in self.columns):
            if column == "documents" and self.frozen is not None:
                batch["documents_sentence_embedding"] = self._vectors(features, slates)
                continue
            if column == "query" and self.frozen_queries is not None:
                vectors = self.frozen_queries.vectors(row["query"] for row in features)
                batch["query_sentence_embedding"] = torch.from_numpy(vectors)
                continue
            sequences = list(self._sequences(column, features, slates, draws, embedder))
            batch |= {f"{column}_{name}": value for name, value in self._padded(sequences).items()}
        return batch

    def _prompt_documents(self, row: Row, draw: random.Random) -> list[str]:
        """The documents of a row's prompt, at most K, in their order there."""
        order = row.get("prompt_order")
        places = list(range(len(row["documents"])) if order is None else order)
        chosen = places[: self.model.listwise.num_prompt_documents]
        if chosen and draw.random() < self.random_prompt_size:
            chosen = chosen[: draw.randint(1, len(chosen))]
        return [row["documents"][place] for place in chosen]

    def _slate_size(self, slates: Sequence[Sequence[int]]) -> int:
        return self.documents_per_slate if self.fill_up else max(map(len, slates))

    def _sequences(
        self,
        column: str,
        rows: Sequence[Row],
        slates: Sequence[Sequence[int]],
        draws: Sequence[random.Random],
        embedder: Embedder,
    ) -> Iterator[tuple[int, ...]]:
        """The token ids of each text of a column."""
        if column == "listwise":
            tokens_of = partial(embedder.tokens, "document")
            for query, row, draw in zip(self._queries(rows, embedder), rows, draws, strict=True):
                shown, instruction = self._prompt_documents(row, draw), self._wording(row).instruction
                yield self._builder.build(query, shown, instruction, tokens_of).ids
            return
        if column == "query":
            found = self._query_ids(rows, embedder)
        elif column == "guarded":
            drawn = list(zip(rows, draws, strict=True))[::GUARDED_EVERY]
            texts = [row["documents"][draw.randrange(len(row["documents"]))] for row, draw in drawn]
            found = embedder.ids("document", texts)
        else:
            texts = []
            for row, places in zip(rows, slates, strict=True):
                texts += [row["documents"][place] for place in places]
                texts += [FILLER] * (self._slate_size(slates) - len(places))
            found = embedder.ids("document", texts)
        for ids in found:
            yield embedder.texts.with_special_tokens(ids, self.model.max_seq_length)

    def _queries(self, rows: Sequence[Row], embedder: Embedder) -> list[TokenizedText]:
        """The tokens of each query behind its retrieval prompt, to be shown in a listwise prompt."""
        if not self._wordings:
            return embedder.tokens("query", [row["query"] for row in rows])
        found = (embedder.texts.texts([row["query"]], self._wording(row).query_prompt) for row in rows)
        return [text for texts in found for text in texts.values()]

    def _query_ids(self, rows: Sequence[Row], embedder: Embedder) -> list[array[int]]:
        """The token ids of each query behind its retrieval prompt, to be embedded."""
        if not self._wordings:
            return embedder.ids("query", [row["query"] for row in rows])
        found = (embedder.texts.own.text_ids([row["query"]], self._wording(row).query_prompt) for row in rows)
        return [ids for texts in found for ids in texts.values()]

    def _vectors(self, rows: Sequence[Row], slates: Sequence[Sequence[int]]) -> Tensor:
        """The stored vectors of all slates, (B·N, D); zeros fill up."""
        assert self.frozen is not None
        size = self._slate_size(slates)
        vectors = torch.zeros(len(rows), size, self.frozen.dimension)
        for number, (row, places) in enumerate(zip(rows, slates, strict=True)):
            stored = self.frozen.vectors(row["documents"][place] for place in places)
            vectors[number, : len(places)] = torch.from_numpy(stored)
        return vectors.flatten(0, 1)

    def _padded(self, sequences: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        tokenizer, width = self.model.tokenizer, max(map(len, sequences))
        input_ids = torch.full((len(sequences), width), tokenizer.pad_token_id or 0)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(sequences):
            span = slice(width - len(ids), width) if tokenizer.padding_side == "left" else slice(len(ids))
            input_ids[row, span] = torch.tensor(ids)
            attention_mask[row, span] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}


def sample_documents(row: Row, number: int, draw: random.Random) -> list[int]:
    """Draw the documents of a slate that are to be scored: at most ``number`` places in its row, ascending.

    Gold documents are kept, up to half of the places, and so is one with the best label. The rest is drawn evenly.
    Without the limit to a half, a query with a hundred positives would come without a negative.
    """
    gold, labels = row["gold"], row["labels"]
    places = list(range(len(gold)))
    if len(places) <= number:
        return places
    draw.shuffle(places)
    kept = [place for place in places if gold[place]][: (number + 1) // 2]
    best = max((label for label in labels if label is not None), default=None)
    if best is not None and best not in [labels[place] for place in kept]:
        kept.append(next(place for place in places if labels[place] == best))
    rest = [place for place in places if place not in kept]
    return sorted((kept + rest)[:number])


def prompt_orders(
    model: E2Rank,
    queries: Sequence[str],
    documents: Sequence[Sequence[str]],
    index: TextVectors | None = None,
    query_index: TextVectors | None = None,
    show_progress_bar: bool | None = None,
) -> list[list[int]]:
    """Order the documents of slates as reranking would before it fills a prompt, by the model's candidate order.

    With ``"similarity"`` the place of a document in its slate says nothing: positives that stand first in a mined
    slate leak nothing through the prompt. Equal scores are ordered by a hash of the text.

    Args:
        model: The model as it is now.
        queries: B queries.
        documents: The documents of each.
        index: The documents with their vectors; by default they are embedded here.
        query_index: The queries with theirs; likewise.
        show_progress_bar: Whether to show progress bars; by default if this logger's level is INFO or lower.

    Returns:
        For each query the places of its documents, those first that a prompt takes first. Each distinct text is
        embedded once.
    """
    if model.listwise.candidate_order == "given":
        return [list(range(len(texts))) for texts in documents]
    options: dict[str, Any] = {"show_progress_bar": progress_wanted(show_progress_bar, logger)}
    if index is None:
        index = TextVectors.build(model, distinct(documents), **options)
    if query_index is None:
        query_index = TextVectors(list(queries), embed_distinct(model, queries, "query", **options))
    query_vectors = torch.from_numpy(query_index.vectors(queries))
    orders = []
    for vector, texts in zip(query_vectors, documents, strict=True):
        scores = cosine(torch.from_numpy(index.vectors(texts)), vector).tolist()
        orders.append(sorted(range(len(texts)), key=lambda place: (-scores[place], text_id(texts[place]))))
    return orders


def _wordings(instructions: Mapping[str, Sequence[str]], query_prompt: str | None) -> dict[str, Wording]:
    """The wording of each source: its two instructions, checked, in the places that the model has for them."""
    for source, pair in instructions.items():
        whole = isinstance(pair, (list, tuple)) and len(pair) == 2
        if not whole or not all(isinstance(text, str) and len(text.split()) > 1 for text in pair):
            raise ValueError(
                f"The instructions of the source {source!r} are {pair!r:.80}; give a list of two sentences, that of "
                "the query and that of the listwise prompt."
            )
    template = instruction_template(query_prompt)
    if instructions and template is None:
        raise ValueError(
            f"The model's query prompt {query_prompt!r} has no place for an instruction by source; leave "
            "source_instructions out, or set query_prompt to one with 'Instruct: ...\\nQuery:'."
        )
    return {
        source: Wording((template or "").replace("{instruction}", retrieval), listwise)
        for source, (retrieval, listwise) in instructions.items()
    }


def _check(row: Row) -> None:
    number = len(row["documents"])
    for name in ("labels", "gold"):
        if len(row[name]) != number:
            raise ValueError(
                f"The slate of {row['query']!r:.60} has {len(row[name])} {name} for {number} documents; give as many."
            )
    order = row.get("prompt_order")
    if order is not None and not set(order) <= set(range(number)):
        raise ValueError(
            f"The prompt_order of {row['query']!r:.60} has {order!r:.60}; its {number} documents are counted from 0."
        )


def _labels(rows: Sequence[Row], slates: Sequence[Sequence[int]], size: int) -> Tensor:
    labels, gold, texts = (
        [[row[name][place] for place in places] for row, places in zip(rows, slates, strict=True)]
        for name in ("labels", "gold", "documents")
    )
    filled = SlateLabels.from_rows(labels, gold, texts)
    missing = (0, size - filled.labels.shape[1])
    parts = zip(filled, (PADDING, False, 0), strict=True)
    return SlateLabels(*(torch.nn.functional.pad(part, missing, value=value) for part, value in parts)).pack()
