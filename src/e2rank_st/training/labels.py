"""Labels, known positives and texts of slates → the tensors that losses compare.

Axes: B queries, N documents of the longest slate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from e2rank_st.storage import text_id

__all__ = ["PADDING", "UNJUDGED", "Lessons", "SlateLabels", "positives", "preferences"]

PADDING, UNJUDGED = -math.inf, math.nan  # as labels


class SlateLabels(NamedTuple):
    """Labels, known positives and text ids of B slates; short slates are filled up with padding.

    A trainer passes a loss one tensor of labels. :meth:`pack` makes an integer tensor, because DeepSpeed casts floating
    point to half precision. Ids and many labels would not survive that.

    Attributes:
        labels: ``(B, N)`` float32. Higher is better; equal labels are not a preference. NaN: unjudged, a candidate but
            not in any pair. ``-inf``: padding, not a candidate (its row of documents still has to hold some text).
        gold: ``(B, N)`` bool, whether the document is a known positive of the query.
        text_ids: ``(B, N)`` int64, equal for equal texts in all slates and all processes: see
            :func:`~e2rank_st.storage.text_id`.
    """

    labels: Tensor
    gold: Tensor
    text_ids: Tensor

    @classmethod
    def from_rows(
        cls,
        labels: Sequence[Sequence[float | None]],
        gold: Sequence[Sequence[bool]],
        texts: Sequence[Sequence[str]],
    ) -> SlateLabels:
        """Fill slates up to the longest one, from their labels (None for unjudged), gold flags and documents.

        Raises:
            ValueError: The three differ in length somewhere, or have no slate.
        """
        sizes = [[len(row) for row in rows] for rows in (labels, gold, texts)]
        if not sizes[0] or sizes.count(sizes[0]) != 3:
            raise ValueError(f"Got slates of {sizes} labels, golds and texts; give one of each for every document.")
        shape = (len(labels), max(sizes[0]))
        slates = cls(torch.full(shape, PADDING), torch.zeros(shape, dtype=torch.bool), torch.zeros(shape).long())
        for index, size in enumerate(sizes[0]):
            slates.labels[index, :size] = torch.tensor([UNJUDGED if x is None else float(x) for x in labels[index]])
            slates.gold[index, :size] = torch.tensor(gold[index], dtype=torch.bool)
            slates.text_ids[index, :size] = torch.tensor([text_id(text) for text in texts[index]])
        return slates

    @property
    def candidates(self) -> Tensor:
        """``(B, N)`` bool: all but the padding."""
        return self.labels != PADDING

    def pack(self) -> Tensor:
        """Make one ``(B, N, 3)`` int64 tensor of the three, the labels as the bits of their float32.

        Raises:
            ValueError: The shapes differ or are not (B, N), a label is ``+inf``, padding is gold, or a slate is empty.
        """
        shapes = [tuple(part.shape) for part in self]
        if shapes.count(shapes[0]) != 3 or len(shapes[0]) != 2:
            raise ValueError(f"labels, gold and text_ids must all have one shape (B, N), got {shapes}.")
        rules = (
            (self.labels == math.inf, "a label of +inf; give a finite one, NaN for unjudged or -inf for padding"),
            (self.gold.bool() & ~self.candidates, "a padding row marked as gold; only a document can be gold"),
            (~self.candidates.any(1, keepdim=True), "no document; leave empty slates out of the batch"),
        )
        for wrong, problem in rules:
            if wrong.any():
                raise ValueError(f"Slate {int(wrong.any(1).nonzero()[0])} has {problem}.")
        bits = self.labels.to(torch.float32).view(torch.int32)
        return torch.stack([bits.long(), self.gold.long(), self.text_ids.long()], dim=-1)

    @classmethod
    def unpack(cls, packed: Any) -> SlateLabels:
        """Read what :meth:`pack` wrote.

        Raises:
            ValueError: It is not a ``(B, N, 3)`` int64 tensor.
        """
        if not isinstance(packed, Tensor) or packed.ndim != 3 or packed.shape[2] != 3 or packed.dtype != torch.int64:
            got = f"{packed.dtype} of {tuple(packed.shape)}" if isinstance(packed, Tensor) else type(packed).__name__
            raise ValueError(f"labels must be an int64 tensor (B, N, 3), got {got}; make it with SlateLabels.pack().")
        bits, gold, text_ids = packed.unbind(-1)
        return cls(bits.to(torch.int32).view(torch.float32), gold.bool(), text_ids)


class Lessons(NamedTuple):
    """Which losses a slate can teach: those that count at least one term of it.

    Attributes:
        contrastive: It has a positive, see :func:`positives`.
        listwise: Two of its labels differ, see :func:`preferences`.
        localized: It has a gold document and a different one.
    """

    contrastive: bool
    listwise: bool
    localized: bool

    @classmethod
    def of(cls, labels: Sequence[float | None], gold: Sequence[bool]) -> Lessons:
        """Look at a slate's labels (None for unjudged) and gold flags. Labels are compared in float32, as by a loss."""
        judged = np.array([label for label in labels if label is not None], np.float32)
        listwise = bool(len(judged)) and bool(judged.min() < judged.max())
        return cls(any(gold) or listwise or len(judged) == 1, listwise, any(gold) and not all(gold))


def preferences(labels: Tensor) -> Tensor:
    """Find the pairs with ``label_i > label_j``.

    Args:
        labels: ``(B, N)``, as in :class:`SlateLabels`.

    Returns:
        ``(B, N, N)`` bool, better document first. Unjudged documents, padding and ties are not in any pair.
    """
    judged = labels.isfinite()
    return (labels[:, :, None] > labels[:, None, :]) & judged[:, :, None] & judged[:, None, :]


def positives(slates: SlateLabels) -> Tensor:
    """Find the documents that a query should retrieve: the gold ones, or else the first with the best label.

    A slate has no positive if it has neither, or if it has several labels that are all equal: they prefer nothing.

    Returns:
        ``(B, N)`` bool.
    """
    judged = slates.labels.isfinite()
    best = slates.labels.masked_fill(~judged, -math.inf).argmax(1, keepdim=True)  # the first of equals
    has_best = preferences(slates.labels).any((1, 2)) | (judged.sum(1) == 1)
    labelled = torch.zeros_like(slates.gold).scatter(1, best, has_best[:, None])
    return torch.where(slates.gold.any(1, keepdim=True), slates.gold, labelled)
