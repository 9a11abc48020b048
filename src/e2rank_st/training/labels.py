"""What is known of the documents of slates, as the tensors that losses compare.

Axes: B queries, N documents of the longest slate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from e2rank_st.storage import text_id

__all__ = ["PADDING", "UNJUDGED", "SlateLabels", "positives", "preferences"]

PADDING, UNJUDGED = -math.inf, math.nan  # as labels


class SlateLabels(NamedTuple):
    """What is known of the documents of B slates, short ones filled up with padding.

    A trainer passes a loss one tensor of labels. :meth:`pack` makes it an integer one, because DeepSpeed casts those of
    floating point to half precision, which no id and not every label survives.

    Attributes:
        labels: ``(B, N)`` float32, higher is better, equal is no preference. NaN: unjudged, a candidate but in no pair.
            ``-inf``: padding, no candidate at all (its row of documents still has to hold some text).
        gold: ``(B, N)`` bool, whether the document is a known positive of the query.
        text_ids: ``(B, N)`` int64, equal where the texts are equal, wherever they stand, and in other processes too if
            negatives are gathered from them: see :func:`~e2rank_st.storage.text_id`.
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
        """Fill slates up to the longest one.

        Args:
            labels: The labels of each slate, ``None`` for unjudged.
            gold: Which of its documents are known positives.
            texts: Its documents.

        Raises:
            ValueError: The three differ in length somewhere, or there is no slate.
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
            ValueError: It is no ``(B, N, 3)`` int64 tensor.
        """
        if not isinstance(packed, Tensor) or packed.ndim != 3 or packed.shape[2] != 3 or packed.dtype != torch.int64:
            got = f"{packed.dtype} of {tuple(packed.shape)}" if isinstance(packed, Tensor) else type(packed).__name__
            raise ValueError(f"labels must be an int64 tensor (B, N, 3), got {got}; make it with SlateLabels.pack().")
        bits, gold, text_ids = packed.unbind(-1)
        return cls(bits.to(torch.int32).view(torch.float32), gold.bool(), text_ids)


def preferences(labels: Tensor) -> Tensor:
    """Find the pairs with ``label_i > label_j``.

    Args:
        labels: ``(B, N)``, as in :class:`SlateLabels`.

    Returns:
        ``(B, N, N)`` bool, better document first. What is unjudged or padding is in no pair, and neither are ties.
    """
    judged = labels.isfinite()
    return (labels[:, :, None] > labels[:, None, :]) & judged[:, :, None] & judged[:, None, :]


def positives(slates: SlateLabels) -> Tensor:
    """Find what a query should retrieve: the gold documents, or else the best labelled one, the first of several.

    A slate has no positive if it has neither, or if all its two or more labels are equal: that is no preference.

    Returns:
        ``(B, N)`` bool.
    """
    judged = slates.labels.isfinite()
    best = slates.labels.masked_fill(~judged, -math.inf).argmax(1, keepdim=True)  # the first of equals
    has_best = preferences(slates.labels).any((1, 2)) | (judged.sum(1) == 1)
    labelled = torch.zeros_like(slates.gold).scatter(1, best, has_best[:, None])
    return torch.where(slates.gold.any(1, keepdim=True), slates.gold, labelled)
