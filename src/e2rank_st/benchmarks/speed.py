"""Time of one rerank: this package against the plain recipe of the public model card, same weights, same candidates.

The recipe is one padded batch of the listwise prompt and all documents through the transformer, pooled and compared.
Candidates are the 100 nearest docstrings of Python's standard library to each of the demo's queries, so no data file
is needed. Variants take turns, so that a machine whose speed drifts treats all alike; a ratio is the median over turns.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from e2rank_st import E2Rank
from e2rank_st.data.docstrings import QUERIES, collect
from e2rank_st.provenance import environment
from e2rank_st.search.texts import TextVectors

__all__ = ["time_reranking"]

NUM_CANDIDATES = 100


def plain_recipe(model: E2Rank, query: str, documents: list[str]) -> list[int]:
    """The model card's way: one list of prompt and documents, padded to the longest, mean-pooled, compared."""
    listwise = model.listwise
    prompt = listwise.format.render(listwise.instruction, query, documents[: listwise.num_prompt_documents])
    texts = [prompt, *documents]
    batch = model.tokenizer(
        texts, padding=True, truncation=True, max_length=listwise.max_prompt_tokens, return_tensors="pt"
    )
    backbone: Any = model.transformers_model
    with torch.inference_mode():
        hidden = backbone(**batch.to(model.device)).last_hidden_state  # (1 + N, L, D)
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)  # (1 + N, D)
    order: list[int] = (vectors[1:] @ vectors[0]).argsort(descending=True).tolist()
    return order


def variants(model: E2Rank) -> dict[str, Callable[[str, list[str], np.ndarray], object]]:
    """The variants: name → function of query, documents and their stored vectors (N, D)."""
    half = copy.deepcopy(model).bfloat16()
    return {
        "plain recipe, float32": lambda query, documents, _: plain_recipe(model, query, documents),
        "rerank, float32": lambda query, documents, _: model.rerank(query, documents),
        "rerank, bfloat16": lambda query, documents, _: half.rerank(query, documents),
        "rerank stored vectors, float32": lambda query, documents, vectors: model.rerank(
            query, documents, document_embeddings=vectors, candidate_order="given"
        ),
    }


def candidates(model: E2Rank) -> list[tuple[str, list[str], np.ndarray]]:
    """Each of the demo's queries with its nearest documents, nearest first, and their vectors."""
    index = TextVectors.build(model, [docstring.document for docstring in collect()], show_progress_bar=False)
    _, rows = index.retrieve(model.encode_query(list(QUERIES)), NUM_CANDIDATES)
    return [
        (query, [index.texts[row] for row in found], index.embeddings[found])
        for query, found in zip(QUERIES, rows, strict=True)
    ]


def measure(model: E2Rank, turns: int) -> dict[str, list[float]]:
    """Seconds a query of each variant: one figure a turn, after a warm-up that is not counted."""
    cases, functions = candidates(model), variants(model)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            for case in cases:
                function(*case)
            if turn:
                seconds[name].append((time.perf_counter() - start) / len(cases))
    return seconds


def time_reranking(turns: int = 5) -> tuple[str, list[tuple[str, float, float]]]:
    """Time the variants with the bundled model on the CPU.

    Args:
        turns: Counted runs of each, at least 1.

    Returns:
        A title with sizes and device. For each variant its name, milliseconds a query, and its speedup over the first.
    """
    seconds = measure(E2Rank.from_bundled(device="cpu"), turns)
    baseline = next(iter(seconds.values()))
    rows = [
        (
            name,
            round(1000 * statistics.median(times), 1),
            round(statistics.median(a / b for a, b in zip(baseline, times, strict=True)), 2),
        )
        for name, times in seconds.items()
    ]
    size = f"{NUM_CANDIDATES} candidates, {len(QUERIES)} queries, {turns} turns"
    return f"{size}; {environment(torch.device('cpu'))['hardware']['device']}", rows
