"""Queries and their candidates → scores by the listwise query, and scores → rankings.

A part of the remote code of a Hub repository: see ``modeling_e2rank.py``.

Axes: B queries, N documents of one query, K documents in the prompt, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments_e2rank import flag, natural, share
from .documents_e2rank import Document
from .embedding_e2rank import Embedder, interpolate
from .passages_e2rank import Candidates
from .prompts_e2rank import Prompt

__all__ = ["CANDIDATE_ORDERS", "Options", "Results", "listwise_scores"]

logger = logging.getLogger(__name__)

CANDIDATE_ORDERS = ("given", "similarity")


class Options(NamedTuple):
    """How a call ranks: see :class:`~modeling_e2rank.ListwiseRerank`."""

    instruction: str
    num_prompt_documents: int
    candidate_order: str
    query_weight: float
    first_stage_weight: float
    long_documents: str


class Results(NamedTuple):
    """What a call wants of each ranking."""

    top_k: int | None
    with_documents: bool
    min_similarity: float | None

    @classmethod
    def of(cls, top_k: Any, return_documents: Any, min_similarity: Any) -> Results:
        """Checks the arguments of a call.

        Raises:
            ValueError: If a value is not allowed.
        """
        return cls(
            None if top_k is None else natural("top_k", top_k),
            flag("return_documents", return_documents),
            None if min_similarity is None else share("min_similarity", min_similarity, least=-1),
        )

    def ranking(
        self, scores: Tensor, similar: Tensor | None, given: Sequence[Document], texts: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Returns the hits of one query, best first, ties in the given order.

        Args:
            scores: Scores of its documents, (N,).
            similar: Their cosines to the query (N,), if it was embedded.
            given: Its documents as they were given.
            texts: Their texts.
        """
        columns = {"score": scores.tolist()} | ({} if similar is None else {"similarity": similar.tolist()})
        order = _best_first(scores)
        if self.min_similarity is not None and similar is not None:
            order = [index for index in order if columns["similarity"][index] >= self.min_similarity]
        hits = [
            {"corpus_id": index, **{name: values[index] for name, values in columns.items()}}
            for index in order[: self.top_k]
        ]
        for hit in hits if self.with_documents else ():
            document = given[hit["corpus_id"]]
            is_mapping = isinstance(document, Mapping)
            hit |= {"document": document} if is_mapping else {"text": texts[hit["corpus_id"]]}
        return hits


@torch.inference_mode()
def listwise_scores(
    embedder: Embedder,
    queries: Sequence[str],
    given: Tensor | None,
    documents: Sequence[Sequence[str]],
    stored: Sequence[Tensor] | Sequence[Sequence[Tensor]] | None,
    options: Options,
    with_similarity: bool,
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Returns the cosines of all candidates to their listwise query, and to their query if that is embedded.

    Args:
        embedder: Embeds texts and prompts.
        queries: B queries.
        given: Their vectors (B, D), if they are known.
        documents: B lists of N texts.
        stored: Their vectors, see :class:`Candidates`; by default, they are embedded.
        options: How to rank.
        with_similarity: Whether to embed the queries in any case.

    Returns:
        Two lists of B tensors of shape (N,).
    """
    asked = [row for row, texts in enumerate(documents) if texts]
    candidates = Candidates(embedder, documents, stored, options.long_documents == "passages")
    query_vectors, similar = torch.empty(len(asked), 0), dict[int, Tensor]()
    by_similarity = options.candidate_order == "similarity"
    if given is not None:
        query_vectors = given[asked].to(embedder.model.device)
    elif by_similarity or options.query_weight or with_similarity or candidates.have_passages:
        query_vectors = embedder.embed_texts("query", (queries[row] for row in asked))  # (B, D)
    if query_vectors.shape[1]:
        similar = {row: candidates.scores(row, vector) for row, vector in zip(asked, query_vectors, strict=True)}
    chosen = [_best_first(similar[row]) if by_similarity else list(range(len(documents[row]))) for row in asked]
    selected = [
        candidates.texts(row, indices[: options.num_prompt_documents], vector)
        for row, indices, vector in zip(asked, chosen, query_vectors, strict=True)
    ]
    prompts = embedder.prompts([queries[row] for row in asked], selected, options.instruction)
    _log_cuts(prompts, embedder.builder.max_tokens)
    vectors = embedder.embed([prompt.ids for prompt in prompts], "prompt")  # (B, D)
    if options.query_weight:
        vectors = interpolate(query_vectors, vectors, options.query_weight)
    scores = [torch.empty(0)] * len(queries)
    for row, vector in zip(asked, vectors, strict=True):
        scores[row] = candidates.scores(row, vector)
    return scores, [similar.get(row) for row in range(len(queries))]


def _log_cuts(prompts: Sequence[Prompt], limit: int) -> None:
    cut = [
        share
        for prompt in prompts
        for tokens, share in zip(prompt.document_tokens, prompt.document_shares, strict=True)
        if share < tokens
    ]
    if cut:
        logger.info(
            "Listwise prompts of at most %d tokens: documents shortened: %d, to %d tokens in all.",
            limit, len(cut), sum(cut),
        )  # fmt: skip
    shares = [prompt.query_share for prompt in prompts if prompt.query_share < prompt.query_tokens]
    if shares:
        logger.warning(
            "Cut %d of %d queries in their listwise prompts, to at most %d tokens. "
            "Raise max_query_tokens, or shorten the query.", len(shares), len(prompts), max(shares),
        )  # fmt: skip


def _best_first(scores: Tensor) -> list[int]:
    return torch.argsort(scores, descending=True, stable=True).tolist()
