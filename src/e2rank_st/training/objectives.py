"""Vectors and labels → the objectives: InfoNCE, RankNet, localized contrast, and the drift from a reference.

Functions without state and without a model. Each returns a sum and a number of terms; only their quotient is a mean.
Several processes add up the numbers first. The loss is then that of one process with the whole batch, for any spread
of its slates and pairs.

Axes: B queries, N documents of the longest slate, D dimensions; P positives, M documents, U distinct texts of a batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sentence_transformers.util import all_gather, all_gather_with_grad
from torch import Tensor

from e2rank_st.training.labels import SlateLabels, positives, preferences

__all__ = ["Average", "Pool", "drift", "info_nce", "localized", "ranknet"]


class Average(NamedTuple):
    """A sum of losses and their number: a mean that can still be taken over several processes.

    Attributes:
        total: Scalar, the sum.
        number: Scalar, an integer; zero if there was nothing to learn from.
    """

    total: Tensor
    number: Tensor

    def mean(self, across_processes: bool = False) -> Tensor:
        """Divide; for a number of 0 the result is 0, with a gradient of 0.

        Args:
            across_processes: Divide by the number of an average process instead. Processes that average their
                gradients, as DDP's do, then follow the mean over all that they hold together.
        """
        number, processes = self.number.to(self.total.dtype), 1  # a copy: the original is an integer
        if across_processes and _is_distributed():
            processes = torch.distributed.get_world_size()
            torch.distributed.all_reduce(number)
        return self.total * processes / number.clamp(min=1)


class Pool(NamedTuple):
    """Documents that serve as candidates of every query.

    Attributes:
        text_ids: ``(M,)`` int64, equal for equal texts.
        vectors: ``(M, D)``.
    """

    text_ids: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, documents: Tensor, slates: SlateLabels) -> Pool:
        """Take all documents of a batch, ``(B, N, D)``, but the padding."""
        return cls(slates.text_ids[slates.candidates], documents[slates.candidates])

    def distinct(self) -> Pool:
        """Keep the first document of each text, U of them, in ascending order of their ids."""
        text_ids, place = self.text_ids.unique(return_inverse=True)
        rows = torch.arange(len(place), device=place.device)
        first = torch.full_like(text_ids, len(place)).scatter_reduce(0, place, rows, "amin")
        return Pool(text_ids, self.vectors[first])

    def gather(self) -> Pool:
        """Join the pools of all processes, of any sizes; gradients flow back to the process of a vector."""
        if not _is_distributed():
            return self
        sizes = all_gather(torch.tensor([len(self.text_ids)], device=self.text_ids.device))
        largest = int(sizes.max())
        missing = largest - len(self.text_ids)  # a collective wants equal shapes
        text_ids = all_gather(F.pad(self.text_ids, (0, missing)))
        vectors = all_gather_with_grad(F.pad(self.vectors, (0, 0, 0, missing)))
        present = (torch.arange(largest, device=sizes.device) < sizes[:, None]).flatten()
        return Pool(text_ids[present], vectors[present])


def info_nce(
    queries: Tensor, documents: Tensor, slates: SlateLabels, temperature: float = 0.03, pool: Pool | None = None
) -> Average:
    """Contrast the positives of each query with all other texts of the batch (InfoNCE, arXiv 1807.03748).

    ``-log(exp(s⁺/τ) / Σ exp(s/τ))`` over the positive and every distinct text of the pool, ``s`` the cosine. The sum
    leaves out the texts that the query's own slate holds to be no worse than the positive: further golds, equal or
    higher labels. It leaves them out of all slates. Unjudged documents count as negatives. Several golds are positives
    in turn, and every slate has the same weight.

    Args:
        queries: ``(B, D)``.
        documents: ``(B, N, D)``.
        slates: Labels, known positives and texts of the documents.
        temperature: τ.
        pool: The candidates; by default the documents of all slates. It has to hold those of ``slates``.

    Returns:
        The sum over slates, and the number of those that have a positive.
    """
    text_ids, vectors = (Pool.of(documents, slates) if pool is None else pool).distinct()
    positive = positives(slates)
    slate, row = positive.nonzero(as_tuple=True)  # (P,), (P,)
    queries, documents = F.normalize(queries, dim=-1), F.normalize(documents, dim=-1)
    scores = queries @ F.normalize(vectors, dim=-1).T / temperature  # (B, U)
    negatives = scores[slate].masked_fill(_no_negatives(slates, slate, row, text_ids), -math.inf)  # (P, U)
    scores = (queries[slate] * documents[slate, row]).sum(-1) / temperature  # (P,)
    losses = torch.cat([scores[:, None], negatives], dim=1).logsumexp(1) - scores
    return Average((losses / positive.sum(1)[slate]).sum(), positive.any(1).sum())


def _no_negatives(slates: SlateLabels, slate: Tensor, row: Tensor, text_ids: Tensor) -> Tensor:
    """``(P, U)`` bool: which texts are the positive at ``(slate, row)`` itself, or no worse than it."""
    labels = slates.labels[slate]  # (P, N)
    no_worse = slates.gold[slate] | (labels >= labels.gather(1, row[:, None]))
    item, place = no_worse.nonzero(as_tuple=True)
    blocked = torch.zeros(len(slate), len(text_ids), dtype=torch.bool, device=labels.device)
    blocked[item, torch.searchsorted(text_ids, slates.text_ids[slate[item], place])] = True
    return blocked


def ranknet(scores: Tensor, labels: Tensor, scale: float = 10.0) -> Average:
    """Learn every preference between two documents of a slate (RankNet, Burges et al. 2005).

    ``log(1 + exp(-scale · (s_i - s_j)))`` for each pair with ``label_i > label_j``. The mean is taken over all pairs of
    the batch, as in E2Rank's reference code.

    Args:
        scores: ``(B, N)`` cosines to the listwise query.
        labels: ``(B, N)``, as in :class:`SlateLabels`.
        scale: ``1/τ_r``.
    """
    pairs = preferences(labels)  # (B, N, N)
    losses = F.softplus(-scale * (scores[:, :, None] - scores[:, None, :]))
    return Average(losses.masked_fill(~pairs, 0).sum(), pairs.sum())


def localized(scores: Tensor, slates: SlateLabels, scale: float = 20.0) -> Average:
    """Contrast the gold documents of a slate with its other candidates (localized contrastive estimation, LCE).

    ``-log(exp(scale · s⁺) / Σ exp(scale · s))`` over a gold document and all candidates that are not gold (Gao et al.
    2021, Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline, arXiv 2101.08751). Unjudged documents
    count as negatives. Several golds are positives in turn, and every slate has the same weight. Slates without a gold
    document, or with gold documents only, are skipped.

    Args:
        scores: ``(B, N)`` cosines to the listwise query.
        slates: Labels, known positives and texts of the documents.
        scale: Factor on the cosines.
    """
    negative = slates.candidates & ~slates.gold
    useful = slates.gold.any(1) & negative.any(1)
    gold, logits = slates.gold[useful], scale * scores[useful]
    rivals = logits.masked_fill(~negative[useful], -math.inf).logsumexp(1, keepdim=True)  # (slates, 1)
    losses = F.softplus(rivals - logits).masked_fill(~gold, 0).sum(1) / gold.sum(1)
    return Average(losses.sum(), useful.sum())


def drift(vectors: Tensor, reference: Tensor) -> Average:
    """Measure how far vectors have turned away from a reference: ``1 - cosine``, for two ``(texts, D)`` matrices."""
    losses = 1 - F.cosine_similarity(vectors, reference, dim=-1)
    return Average(losses.sum(), torch.tensor(len(losses), device=losses.device))


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
