"""Texts and prompts → vectors, vectors → cosines, and cosines with the first stage's scores → one score.

A part of the remote code of a Hub repository: see ``modeling_e2rank.py``.

Axes: B queries, N documents of one query, L tokens, D dimensions.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from .prompts_e2rank import Prompt, PromptBuilder, TokenizedText

__all__ = ["RETRIEVAL_PROMPTS", "Embedder", "cosine", "first_position", "fuse", "interpolate", "token_batches"]

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

RETRIEVAL_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}  # as ST's encode_* choose them
MAX_BATCH_TOKENS = 16_384  # padded tokens of one forward pass, for every batch size
BLOCK = 4_096  # vectors that are compared at a time: a comparison needs their memory twice
# Padded tokens that take as long as the start of one more forward pass: by kind of device, and elsewhere.
START_TOKENS, OTHER_START_TOKENS = {"cpu": 64}, 4_096


class Embedder:
    """Texts and prompts of one call → vectors, each distinct one once, in batches of similar length and bounded tokens.

    Args:
        model: The complete model, which embeds queries and documents.
        prompt_model: The model that embeds prompts.
        builder: Builds the model's prompts.
        batch_size: Most sequences in a forward pass.
        show_progress_bar: Whether to show a progress bar for each kind of sequence.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        prompt_model: nn.Module,
        builder: PromptBuilder,
        batch_size: int,
        show_progress_bar: bool,
    ) -> None:
        self.model = model
        self.prompt_model = prompt_model
        self.builder = builder
        self.texts = builder.texts
        self.batch_size = batch_size
        self.show_progress_bar = show_progress_bar
        self._tokens: dict[str, dict[str, TokenizedText]] = {}  # by task, by text
        self._ids: dict[str, dict[str, array[int]]] = {}
        self._is_ready = False  # nothing is dropped at random

    def tokens(self, task: str, texts: Iterable[str]) -> list[TokenizedText]:
        """Returns the tokens of each text as a listwise prompt shows it; each is tokenised once.

        Args:
            task: ``"query"`` or ``"document"``.
            texts: The texts.
        """
        return self._tokenised(task, texts, self.texts.texts, self._tokens)

    def ids(self, task: str, texts: Iterable[str]) -> list[array[int]]:
        """Returns the token ids of each text as it is embedded; each is tokenised once.

        A model whose tokenizer keeps control tokens embeds them as such; in a listwise prompt they are ordinary
        characters.
        """
        return self._tokenised(task, texts, self.texts.own.text_ids, self._ids)

    def _tokenised(
        self,
        task: str,
        texts: Iterable[str],
        tokenise: Callable[[Iterable[str], str, int | None], dict[str, Made]],
        kept: dict[str, dict[str, Made]],
    ) -> list[Made]:
        """Tokenises each text behind the model's retrieval prompt for the task, and keeps it."""
        texts, known = list(texts), kept.setdefault(task, {})
        prompt, limit = self.prompt(task), self.limit(task)
        in_prompt = self.builder.max_query_tokens if task == "query" else self.builder.max_tokens
        needed = None if limit is None else max(limit, in_prompt) + 1  # one more tells that a text is cut
        known |= tokenise((text for text in texts if text not in known), prompt, needed)
        return [known[text] for text in texts]

    def prompt(self, task: str) -> str:
        """Returns the retrieval prompt that ``encode_query`` or ``encode_document`` chooses; it may be empty."""
        prompts = self.model.prompts
        name = next((name for name in RETRIEVAL_PROMPTS[task] if name in prompts), self.model.default_prompt_name)
        return prompts.get(name or "") or ""

    def _prompt_length(self, task: str) -> int | None:
        """The tokens of the retrieval prompt, if the pooling leaves them out; counted as Sentence-Transformers does."""
        prompt = self.prompt(task)
        if not prompt or all(getattr(module, "include_prompt", True) for module in self.model):
            return None
        (text,) = self.texts.own.ids([prompt])
        ids = self.texts.own.with_special_tokens(text, self.model.max_seq_length)
        return len(ids) - (bool(ids) and ids[-1] in self.texts.tokenizer.all_special_ids)

    def limit(self, task: str) -> int | None:
        """Returns the most tokens that the model embeds of a query or document, special tokens included."""
        text = (getattr(self.model[0], "processing_kwargs", None) or {}).get("text") or {}
        if text.get("truncation", True) in (False, "do_not_truncate"):
            return None
        by_task = getattr(self.model[0], f"{task}_length", None)
        limit: int | None = text.get("max_length") or by_task or self.model.max_seq_length
        return limit

    def prompts(self, queries: Sequence[str], documents: Sequence[Sequence[str]], instruction: str) -> list[Prompt]:
        """Builds one listwise prompt for each query from its chosen documents."""
        tokens = partial(self.tokens, "document")
        return [
            self.builder.build(query, texts, instruction, tokens)
            for query, texts in zip(self.tokens("query", queries), documents, strict=True)
        ]

    def embed_texts(self, task: str, texts: Iterable[str]) -> Tensor:
        """Returns the vectors of ``encode_query`` or ``encode_document``, of shape (texts, D)."""
        limit = self.limit(task)
        found = self.ids(task, texts)
        sequences = [self.texts.with_special_tokens(ids, limit) for ids in found]
        special = len(self.texts.with_special_tokens(()))
        cut = sum(len(whole) + special > len(ids) for whole, ids in zip(found, sequences, strict=True))
        if cut:
            logger.info("Embedding at most %d tokens of a %s: cut %d of %d.", limit, task, cut, len(found))
        return self.embed(sequences, task, self._prompt_length(task))

    def candidates(self, lists: Sequence[Sequence[str]]) -> Callable[[int], Tensor]:
        """Embeds the candidates of all queries. The result maps a query's row to its (N, D) vectors."""
        rows = {text: row for row, text in enumerate(dict.fromkeys(text for texts in lists for text in texts))}
        vectors = self.embed_texts("document", rows)
        last: list[Any] = [None, None]  # queries that share one list also share its gathered vectors

        def gather(index: int) -> Tensor:
            if last[0] is not lists[index]:
                last[:] = lists[index], vectors[[rows[text] for text in lists[index]]]
            gathered: Tensor = last[1]
            return gathered

        return gather

    def embed(self, sequences: Sequence[tuple[int, ...]], kind: str, prompt_length: int | None = None) -> Tensor:
        """Embeds token ids; returns float32 vectors of shape (sequences, D), in the order of the sequences.

        Args:
            sequences: The token ids.
            kind: ``"prompt"`` for listwise prompts; else a name for the progress bar.
            prompt_length: The number of first tokens that the pooling leaves out, if it leaves out any.
        """
        if not self._is_ready and any(module.training for module in self.model.modules()):
            self.model.eval()
        self._is_ready = True
        shared = {} if prompt_length is None else {"prompt_length": prompt_length}
        rows = {ids: row for row, ids in enumerate(dict.fromkeys(sequences))}
        distinct = list(rows)
        vectors = torch.empty(len(distinct), self.model.get_embedding_dimension() or 0, device=self.model.device)
        model = self.prompt_model if kind == "prompt" else self.model
        # A first module may compute somewhere else than on the model's device.
        place = getattr(self.model[0], "place", vectors.device.type)
        with tqdm(total=len(distinct), desc=kind, unit=kind, disable=not self.show_progress_bar) as progress:
            for batch in token_batches([len(ids) for ids in distinct], self.batch_size, place):
                features: dict[str, Any] = {**self.features([distinct[row] for row in batch]), **shared}
                vectors[batch] = model(features)["sentence_embedding"][:, : vectors.shape[1]].float()
                progress.update(len(batch))
        return vectors[[rows[ids] for ids in sequences]]

    def features(self, sequences: Sequence[tuple[int, ...]]) -> dict[str, Any]:
        """Returns what a model's ``forward`` takes: token ids and attention mask, both (sequences, L).

        Where ``encode`` leaves out padding, so does this: with a flash attention, see ``unpad_inputs`` of
        Sentence-Transformers' ``Transformer``.
        """
        lengths, device = torch.tensor([len(ids) for ids in sequences]), self.model.device
        # A text without tokens has no place among the others: its vector would be that of its neighbour.
        if getattr(self.model[0], "can_flatten_inputs", False) and bool(lengths.all()):
            flat = flattened(sequences, lengths, first_position(self.model))
            return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in flat.items()}
        width, padding = max(int(lengths.max()), 1), self.texts.tokenizer.pad_token_id or 0
        # Padding on the right: absolute positions count from the left, and the pooling finds the last token.
        input_ids = torch.tensor([(*ids, *[padding] * (width - len(ids))) for ids in sequences])
        attention_mask = (torch.arange(width) < lengths[:, None]).long()
        return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}


def flattened(sequences: Sequence[tuple[int, ...]], lengths: Tensor, first: int) -> dict[str, Any]:
    """Returns what an attention of variable length takes: all sequences behind each other, and where each ends.

    Args:
        sequences: The token ids.
        lengths: Number of tokens of each.
        first: Position of the first token of each.
    """
    ends = F.pad(lengths.cumsum(0), (1, 0))
    starts = torch.repeat_interleave(ends[:-1], lengths)
    borders, longest = ends.int(), int(lengths.max())
    return {
        "input_ids": torch.tensor([[token for ids in sequences for token in ids]]),
        "position_ids": (torch.arange(len(starts)) - starts + first)[None],
        "seq_idx": torch.repeat_interleave(torch.arange(len(lengths)), lengths).int()[None],
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def first_position(model: nn.Module) -> int:
    """Returns the position of a text's first token: RoBERTa and its kind put it behind that of the padding."""
    for module in model.modules():
        padding = getattr(getattr(module, "position_embeddings", None), "padding_idx", None)
        if padding is not None:
            return int(padding) + 1
    return 0


def token_batches(lengths: Sequence[int], batch_size: int, device: str = "cpu") -> list[list[int]]:
    """Splits sequences, sorted by length, into the batches that together cost least: padded tokens, and each start.

    The longest come first, because the peak of memory then comes at once. The split is the best one of all: for each
    number of first sequences it is known what they cost, and which is their last batch (dynamic programming).

    Args:
        lengths: Tokens of each sequence.
        batch_size: Most sequences of a batch.
        device: Kind of the device that computes, or the name of another place; the start of a forward pass costs more
            where tokens cost less.

    Returns:
        Places of the sequences. A batch has at most ``MAX_BATCH_TOKENS`` padded tokens, or one sequence.
    """
    start = START_TOKENS.get(device, OTHER_START_TOKENS)
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    least, begins = [0], [0]
    for end in range(1, len(order) + 1):
        cost, begin = least[end - 1] + lengths[order[end - 1]], end - 1
        for first in range(end - 2, max(end - batch_size, 0) - 1, -1):
            padded = lengths[order[first]] * (end - first)
            if padded > MAX_BATCH_TOKENS:
                break
            if least[first] + padded < cost:
                cost, begin = least[first] + padded, first
        least.append(cost + start)
        begins.append(begin)
    batches, end = list[list[int]](), len(order)
    while end:
        batches.append(order[begins[end] : end])
        end = begins[end]
    return batches[::-1]


def cosine(vectors: Tensor, vector: Tensor) -> Tensor:
    """Returns cosines in float32 of (N, D) vectors to one (D,) vector, of shape (N,).

    In a matrix product, a row's result may depend on the other rows. Here it does not, so equal vectors tie exactly.
    """
    direction = F.normalize(vector.float(), dim=-1)
    parts = (part.to(vector.device, torch.float32).contiguous() for part in vectors.split(BLOCK))
    return torch.cat([(F.normalize(part, dim=-1) * direction).sum(-1) for part in parts])


def interpolate(queries: Tensor, prompts: Tensor, query_weight: float) -> Tensor:
    """Mixes the directions of retrieval queries and listwise prompts, both (B, D). The result is not normalised."""
    return query_weight * F.normalize(queries, dim=-1) + (1 - query_weight) * F.normalize(prompts, dim=-1)


def fuse(listwise: Tensor, first_stage: Tensor, weight: float) -> Tensor:
    """Mixes two scores of one query's N candidates: ``(1 - weight) * z(listwise) + weight * z(first_stage)``.

    z is the standard score, with the mean and the population standard deviation of these candidates. The two scores
    have different units, such as cosines and BM25's, so they are not comparable as they are. Equal scores all get 0.

    Returns:
        N scores in float64 on the CPU. A weight of 0 returns ``listwise`` as it is.
    """
    return (1 - weight) * _standard(listwise) + weight * _standard(first_stage) if weight else listwise


def _standard(scores: Tensor) -> Tensor:
    scores = scores.cpu().double()  # some devices lack this type
    if not len(scores) or scores.min() == scores.max():
        return torch.zeros_like(scores)
    scores = scores / scores.abs().max()  # the square of a huge score would be infinite
    scores = scores - scores.mean()
    return scores / scores.square().mean().sqrt()
