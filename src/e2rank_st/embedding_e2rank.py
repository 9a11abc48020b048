"""Texts and prompts → vectors, and vectors → cosines.

A part of the remote code of a Hub repository: see ``modeling_e2rank.py``.

Axes: B queries, N documents of one query, L tokens, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers.utils.logging import tqdm

from .prompts_e2rank import Prompt, PromptBuilder, TokenizedText

__all__ = ["RETRIEVAL_PROMPTS", "Embedder", "cosine", "interpolate", "token_batches"]

logger = logging.getLogger(__name__)

RETRIEVAL_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}  # as ST's encode_* choose them
MAX_BATCH_TOKENS = 16_384  # padded tokens of one forward pass, for every batch size


class Embedder:
    """Texts and prompts of one call → vectors, each distinct one once, in batches of similar length and bounded tokens.

    Args:
        model: The complete model.
        builder: Builds the model's prompts.
        batch_size: Most sequences in a forward pass.
        show_progress_bar: Whether to show a progress bar for each kind of sequence.
    """

    def __init__(
        self, model: SentenceTransformer, builder: PromptBuilder, batch_size: int, show_progress_bar: bool
    ) -> None:
        self.model = model
        self.builder = builder
        self.texts = builder.texts
        self.batch_size = batch_size
        self.show_progress_bar = show_progress_bar
        self._tokens: dict[str, dict[str, TokenizedText]] = {task: {} for task in RETRIEVAL_PROMPTS}

    def tokens(self, task: str, texts: Iterable[str]) -> list[TokenizedText]:
        """Returns the tokens of each text after the model's retrieval prompt for the task; each is tokenised once."""
        texts, known, limit = list(texts), self._tokens[task], self.limit(task)
        in_prompt = self.builder.max_query_tokens if task == "query" else self.builder.max_tokens
        needed = None if limit is None else max(limit, in_prompt) + 1  # one more tells that a text is cut
        known |= self.texts.texts((text for text in texts if text not in known), self.prompt(task), needed)
        return [known[text] for text in texts]

    def prompt(self, task: str) -> str:
        """Returns the model's retrieval prompt for the task; it may be empty."""
        prompts = self.model.prompts
        name = next((name for name in RETRIEVAL_PROMPTS[task] if name in prompts), self.model.default_prompt_name)
        return prompts.get(name or "") or ""

    def limit(self, task: str) -> int | None:
        """Returns the most tokens that the model embeds of a query or document, special tokens included."""
        limit: int | None = getattr(self.model[0], f"{task}_length", None) or self.model.max_seq_length
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
        tokens = self.tokens(task, texts)
        sequences = [self.texts.with_special_tokens(text.ids, limit) for text in tokens]
        cut = sum(
            len(self.texts.with_special_tokens(text.ids)) > len(ids)
            for text, ids in zip(tokens, sequences, strict=True)
        )
        if cut:
            logger.info("Embedding at most %d tokens of a %s: cut %d of %d.", limit, task, cut, len(tokens))
        return self.embed(sequences, task)

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

    def embed(self, sequences: Sequence[tuple[int, ...]], kind: str) -> Tensor:
        """Embeds token ids; returns float32 vectors of shape (sequences, D), in the order of the sequences."""
        rows = {ids: row for row, ids in enumerate(dict.fromkeys(sequences))}
        distinct = list(rows)
        vectors = torch.empty(len(distinct), self.model.get_embedding_dimension() or 0, device=self.model.device)
        self.model.eval()
        with tqdm(total=len(distinct), desc=kind, unit=kind, disable=not self.show_progress_bar) as progress:
            for batch in token_batches([len(ids) for ids in distinct], self.batch_size):
                features = self._features([distinct[row] for row in batch])
                vectors[batch] = self.model(features)["sentence_embedding"][:, : vectors.shape[1]].float()
                progress.update(len(batch))
        return vectors[[rows[ids] for ids in sequences]]

    def _features(self, sequences: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        width = max(map(len, sequences))
        input_ids = torch.full((len(sequences), width), self.texts.tokenizer.pad_token_id or 0)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(sequences):
            # Padding on the right: absolute positions count from the left, and the pooling finds the last token.
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        device = self.model.device
        return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}


def token_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yields batches of similar lengths: at most ``batch_size`` sequences and ``MAX_BATCH_TOKENS`` padded tokens each.

    The longest come first, because the peak of memory then comes at once. A sequence above the limit goes alone.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) == batch_size or (len(batch) + 1) * lengths[batch[0]] > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def cosine(vectors: Tensor, vector: Tensor) -> Tensor:
    """Returns cosines in float32 of (N, D) vectors to one (D,) vector, of shape (N,).

    In a matrix product, a row's result may depend on the other rows. Here it does not, so equal vectors tie exactly.
    """
    vectors = vectors.to(vector.device, torch.float32).contiguous()
    return (F.normalize(vectors, dim=-1) * F.normalize(vector.float(), dim=-1)).sum(-1)


def interpolate(queries: Tensor, prompts: Tensor, query_weight: float) -> Tensor:
    """Mixes the directions of retrieval queries and listwise prompts, both (B, D). The result is not normalised."""
    return query_weight * F.normalize(queries, dim=-1) + (1 - query_weight) * F.normalize(prompts, dim=-1)
