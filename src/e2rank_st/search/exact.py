"""Vectors of queries and documents → the nearest documents of each query, by exact search under optional rules.

Rules are applied to all documents before the best are taken. A query therefore gets its full number, although many of
its nearest documents may be excluded. One chunk of the score matrix is in memory at a time, and the chunks do not
change the result. Products in float32 only preselect, with a slack for rounding. Each preselected document is scored
and checked again by itself, in float64.

Axes: B queries, N documents, D dimensions, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from e2rank_st.search.vectors import Matrix, Rows

__all__ = ["Neighbours", "Rules", "nearest"]

ROUNDING = 1e-5  # more than twice the error of a float32 product of unit vectors
SAMPLE = 64  # vectors of each side, to measure the error of products
DOCUMENTS_AT_ONCE = 2**14
SCORES_AT_ONCE = 2**24  # cells of a score matrix in memory, 64 MiB in float32


class Neighbours(NamedTuple):
    """The nearest documents of a query.

    Attributes:
        rows: Their row numbers, nearest first; ties are sorted by row.
        scores: Their cosines, float64.
    """

    rows: Rows
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Rules:
    """The documents that a query may have. Entry b of a list belongs to query b.

    Attributes:
        listed: Rows of documents.
        only: True allows the listed documents only. False excludes them.
        limits: Highest cosine to the query, of shape (B,); None for no limit.
        positives: Rows of each query's positive documents, for ``max_positive_similarity``.
        max_positive_similarity: Highest cosine to any of the positives; None for no limit.
    """

    listed: Sequence[Rows]
    only: bool = False
    limits: NDArray[np.float64] | None = None
    positives: Sequence[Rows] = ()
    max_positive_similarity: float | None = None

    def part(self, queries: slice) -> Rules:
        """Return the rules of some queries."""
        limits = None if self.limits is None else self.limits[queries]
        return Rules(self.listed[queries], self.only, limits, self.positives[queries], self.max_positive_similarity)


def nearest(
    queries: Matrix,
    documents: Matrix,
    count: int,
    *,
    rules: Rules | None = None,
    device: torch.device | None = None,
) -> list[Neighbours]:
    """Find each query's nearest documents among those that its rules allow.

    Args:
        queries: Unit vectors, (B, D).
        documents: Unit vectors, (N, D).
        count: K, the number of documents for each query.
        rules: Rules for allowed documents; by default, all are allowed.
        device: Device of the products; by default the CPU.

    Returns:
        B neighbourhoods of at most K documents.
    """
    size = max(1, min(DOCUMENTS_AT_ONCE, len(documents)))
    step = max(1, SCORES_AT_ONCE // size)
    found: list[Neighbours] = []
    for first in range(0, len(queries), step):
        part, count = slice(first, first + step), min(count, len(documents))
        search = _Search(queries[part], documents, rules and rules.part(part), count, device or torch.device("cpu"))
        for start in range(0, len(documents), size):
            search.add(start, min(start + size, len(documents)))
        owners, rows = search.preselected()
        bounds = np.searchsorted(owners, np.arange(len(queries[part]) + 1))
        found += [search.exact(query, rows[start:stop]) for query, (start, stop) in enumerate(pairwise(bounds))]
    return found


class _Search:
    """The documents found so far that may be among the nearest."""

    def __init__(
        self, queries: Matrix, documents: Matrix, rules: Rules | None, count: int, device: torch.device
    ) -> None:
        self.given, self.documents = queries, documents
        self.queries = torch.from_numpy(queries).to(device)  # (B, D)
        self.slack = _slack(self.queries, torch.from_numpy(documents[:SAMPLE]).to(device))
        self.rules = rules
        self.best = torch.full((len(queries), count), -torch.inf, device=device)  # (B, K)
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []
        if rules is not None:
            owners = np.repeat(np.arange(len(queries)), [len(rows) for rows in rules.listed])
            listed = np.concatenate([np.empty(0, np.int64), *rules.listed])
            order = np.argsort(listed, kind="stable")
            self.owners, self.listed = owners[order], listed[order]  # by row: a chunk is a slice

    def add(self, start: int, stop: int) -> None:
        """Search the n documents from ``start`` to ``stop``."""
        block = torch.from_numpy(self.documents[start:stop]).to(self.queries.device)
        scores = self.queries @ block.T  # (B, n)
        passed = possible = scores
        if self.rules is not None:
            # Only documents that surely pass every rule may raise the bar for the rest.
            sure, maybe = self._judged(self.rules, scores, block, start, stop)
            passed, possible = scores.masked_fill(~sure, -torch.inf), scores.masked_fill(~maybe, -torch.inf)
        self.best = torch.cat([self.best, passed], dim=1).topk(self.best.shape[1], dim=1).values
        bar = self.best[:, -1:] - self.slack if self.best.shape[1] else torch.inf
        owners, columns = ((possible >= bar) & (possible > -torch.inf)).nonzero(as_tuple=True)
        self.kept.append((owners, columns + start, scores[owners, columns]))

    def preselected(self) -> tuple[Rows, Rows]:
        """Return queries and rows of documents that may be among the nearest, sorted by query, then by row."""
        if not self.kept:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        owners, rows, scores = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        if self.best.shape[1]:
            near = scores >= self.best[owners, -1] - self.slack
            owners, rows = owners[near], rows[near]
        found, listed = owners.cpu().numpy(), rows.cpu().numpy()
        order = np.lexsort((listed, found))
        return found[order], listed[order]

    def exact(self, query: int, rows: Rows) -> Neighbours:
        """Return the best of a query's preselected rows, checked and sorted in float64."""
        vectors, rules = self.documents[rows].astype(np.float64), self.rules  # (n, D)
        scores = (vectors * self.given[query].astype(np.float64)).sum(axis=1)
        passed = np.ones(len(rows), bool)
        if rules is not None and rules.limits is not None:
            passed &= scores <= rules.limits[query]
        if rules is not None and rules.max_positive_similarity is not None:
            for positive in self.documents[rules.positives[query]].astype(np.float64):
                passed &= (vectors * positive).sum(axis=1) <= rules.max_positive_similarity
        rows, scores = rows[passed], scores[passed]
        order = np.argsort(-scores, kind="stable")[: self.best.shape[1]]
        return Neighbours(rows[order], scores[order])

    def _judged(self, rules: Rules, scores: Tensor, block: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return masks of a chunk's documents that surely, and that possibly, pass every rule, (B, n) each."""
        sure = maybe = self._allowed(rules, start, stop)
        if rules.limits is not None:
            limits = torch.from_numpy(rules.limits).to(scores.device, torch.float32)[:, None]  # (B, 1)
            sure, maybe = sure & (scores <= limits - self.slack), maybe & (scores <= limits + self.slack)
        if rules.max_positive_similarity is not None:
            similarities = self._to_positives(rules, block)
            sure = sure & (similarities <= rules.max_positive_similarity - self.slack)
            maybe = maybe & (similarities <= rules.max_positive_similarity + self.slack)
        return sure, maybe

    def _allowed(self, rules: Rules, start: int, stop: int) -> Tensor:
        """Return a mask of a chunk's documents that the lists allow, (B, n)."""
        first, last = np.searchsorted(self.listed, [start, stop])
        allowed = torch.full((len(self.queries), stop - start), not rules.only, device=self.queries.device)
        owners, columns = self.owners[first:last], self.listed[first:last] - start
        allowed[torch.from_numpy(owners), torch.from_numpy(columns)] = rules.only
        return allowed

    def _to_positives(self, rules: Rules, block: Tensor) -> Tensor:
        """Return the highest cosine of each document of a chunk to a positive of each query, (B, n)."""
        highest = torch.full((len(self.queries), len(block)), -torch.inf, device=block.device)
        # One positive of each query at a time: a query may have hundreds.
        for turn in range(max(map(len, rules.positives), default=0)):
            having = [query for query, rows in enumerate(rules.positives) if len(rows) > turn]
            rows = [int(rules.positives[query][turn]) for query in having]
            similarities = torch.from_numpy(self.documents[rows]).to(block.device) @ block.T
            highest[having] = torch.maximum(highest[having], similarities)
        return highest


def _slack(queries: Tensor, documents: Tensor) -> float:
    """Return more than twice the error of products on this device; a setting of torch may reduce their bits."""
    queries = queries[:SAMPLE]
    error = (queries @ documents.T).cpu().double() - queries.cpu().double() @ documents.cpu().double().T
    return max(ROUNDING, 16 * float(error.abs().max())) if error.numel() else ROUNDING
