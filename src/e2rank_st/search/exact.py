"""Vectors of queries and documents, and rules → the nearest documents that the rules allow, exactly.

Every rule is applied to all documents before the best are taken, so that a query gets its full number however many of
its nearest ones are excluded. A chunk of scores is in memory at a time, never the whole matrix, and the result does not
depend on the chunks: products in float32 only preselect, with a slack for rounding; what is left is scored and judged
again in float64, each document by itself.

Axes: B queries, N documents, D dimensions, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Matrix", "Rows", "Rules", "nearest"]

ROUNDING = 1e-5  # more than a float32 product of unit vectors can be off, twice
SAMPLE = 64  # vectors of each side that show how exact products are
Matrix: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Rules:
    """Which documents a query may have. Entry b of a list is query b's.

    Attributes:
        listed: Rows of documents.
        only: Whether a query may have the listed documents only, or all others.
        limits: Highest cosine to the query, of shape (B,).
        positives: Rows of the documents that ``max_positive_similarity`` compares with.
        max_positive_similarity: Highest cosine to any of the positives.
    """

    listed: Sequence[Rows]
    only: bool
    limits: NDArray[np.float64]
    positives: Sequence[Rows]
    max_positive_similarity: float | None = None


def nearest(
    queries: Matrix, documents: Matrix, rules: Rules, count: int, chunk_size: int, device: torch.device
) -> list[Rows]:
    """Find each query's nearest documents among those that its rules allow.

    Args:
        queries: Unit vectors, (B, D).
        documents: Unit vectors, (N, D).
        rules: What is allowed.
        count: K, how many to find a query.
        chunk_size: How many documents to score at a time.
        device: Where to multiply.

    Returns:
        B arrays of at most K rows, nearest first; equally near ones by row.
    """
    search = _Search(queries, documents, rules, count, device)
    for start in range(0, len(documents), chunk_size):
        search.add(start, min(start + chunk_size, len(documents)))
    owners, rows = search.preselected()
    bounds = np.searchsorted(owners, np.arange(len(queries) + 1))
    return [
        _exact(queries[query], documents, rows[bounds[query] : bounds[query + 1]], rules, query, count)
        for query in range(len(queries))
    ]


class _Search:
    """What may be among the nearest so far."""

    def __init__(self, queries: Matrix, documents: Matrix, rules: Rules, count: int, device: torch.device) -> None:
        self.queries = torch.from_numpy(queries).to(device)  # (B, D)
        self.documents = documents
        self.slack = _slack(self.queries, torch.from_numpy(documents[:SAMPLE]).to(device))
        self.rules = rules
        self.limits = torch.from_numpy(rules.limits).to(device, torch.float32)[:, None]  # (B, 1)
        owners = np.repeat(np.arange(len(queries)), [len(rows) for rows in rules.listed])
        listed = np.concatenate([np.empty(0, np.int64), *rules.listed])
        order = np.argsort(listed, kind="stable")
        self.owners, self.listed = owners[order], listed[order]  # by row, so that a chunk's are a slice
        self.best = torch.full((len(queries), count), -torch.inf, device=device)  # (B, K)
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, start: int, stop: int) -> None:
        """Look at the documents from ``start`` to ``stop``, n of them."""
        block = torch.from_numpy(self.documents[start:stop]).to(self.queries.device)
        scores = self.queries @ block.T  # (B, n)
        allowed = self._allowed(start, stop)
        sure = allowed & (scores <= self.limits - self.slack)
        possible = allowed & (scores <= self.limits + self.slack)
        if self.rules.max_positive_similarity is not None:
            similarities = self._to_positives(block)
            sure &= similarities <= self.rules.max_positive_similarity - self.slack
            possible &= similarities <= self.rules.max_positive_similarity + self.slack
        # Only documents that pass every rule beyond doubt raise the bar for the others.
        passed = scores.masked_fill(~sure, -torch.inf)
        self.best = torch.cat([self.best, passed], dim=1).topk(self.best.shape[1], dim=1).values
        owners, columns = (possible & (scores >= self.best[:, -1:] - self.slack)).nonzero(as_tuple=True)
        self.kept.append((owners, columns + start, scores[owners, columns]))

    def preselected(self) -> tuple[Rows, Rows]:
        """Queries and rows of documents that may be among the nearest, sorted by query, then by row."""
        owners, rows, scores = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        near = scores >= self.best[owners, -1] - self.slack
        found, listed = owners[near].cpu().numpy(), rows[near].cpu().numpy()
        order = np.lexsort((listed, found))
        return found[order], listed[order]

    def _allowed(self, start: int, stop: int) -> Tensor:
        """Which of a chunk's documents the lists allow, (B, n)."""
        first, last = np.searchsorted(self.listed, [start, stop])
        allowed = torch.full((len(self.queries), stop - start), not self.rules.only, device=self.queries.device)
        owners, columns = self.owners[first:last], self.listed[first:last] - start
        allowed[torch.from_numpy(owners), torch.from_numpy(columns)] = self.rules.only
        return allowed

    def _to_positives(self, block: Tensor) -> Tensor:
        """Highest cosine of each of a chunk's documents to a positive of each query, (B, n)."""
        highest = torch.full((len(self.queries), len(block)), -torch.inf, device=block.device)
        # One positive of each query at a time: a query may have hundreds.
        for turn in range(max(map(len, self.rules.positives), default=0)):
            having = [query for query, rows in enumerate(self.rules.positives) if len(rows) > turn]
            rows = [int(self.rules.positives[query][turn]) for query in having]
            similarities = torch.from_numpy(self.documents[rows]).to(block.device) @ block.T
            highest[having] = torch.maximum(highest[having], similarities)
        return highest


def _slack(queries: Tensor, documents: Tensor) -> float:
    """More than products on this device may be off, twice: torch can be set to calculate them with fewer bits."""
    queries = queries[:SAMPLE]
    error = (queries @ documents.T).cpu().double() - queries.cpu().double() @ documents.cpu().double().T
    return max(ROUNDING, 16 * float(error.abs().max()))


def _exact(query: Matrix, documents: Matrix, rows: Rows, rules: Rules, number: int, count: int) -> Rows:
    """The best of the preselected rows, judged and ordered in float64."""
    vectors = documents[rows].astype(np.float64)  # (n, D)
    scores = (vectors * query.astype(np.float64)).sum(axis=1)
    passed = scores <= rules.limits[number]
    if rules.max_positive_similarity is not None:
        for positive in documents[rules.positives[number]].astype(np.float64):
            passed &= (vectors * positive).sum(axis=1) <= rules.max_positive_similarity
    order = np.argsort(-scores[passed], kind="stable")[:count]
    best: Rows = rows[passed][order]
    return best
