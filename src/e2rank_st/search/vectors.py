"""Texts → unit vectors, each distinct text embedded once. NumPy or torch vectors → a matrix of unit rows.

Axes: N texts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Matrix", "Rows", "distinct", "embed_distinct", "unit_rows"]

Matrix: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]  # row numbers in a matrix


def embed_distinct(encode: Callable[..., Any], texts: Sequence[str], **options: Any) -> Matrix:
    """Embed each distinct text once.

    Equal texts therefore get exactly the same vector and the same score.

    Args:
        encode: ``encode_document`` or ``encode_query`` of a Sentence-Transformers model.
        texts: N texts.
        **options: Further options of ``encode``, such as ``batch_size`` and ``show_progress_bar``.

    Returns:
        Unit vectors in the order of ``texts``, (N, D).
    """
    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = unit_rows(encode(list(row_of), convert_to_numpy=True, **options))
    return vectors if len(row_of) == len(texts) else vectors[[row_of[text] for text in texts]]


def distinct(lists: Iterable[Iterable[str]]) -> list[str]:
    """Each text of some lists once, in the order in which it first appears."""
    return list(dict.fromkeys(text for texts in lists for text in texts))


def unit_rows(vectors: Any) -> Matrix:
    """Return a matrix as float32 with rows of unit length. A zero row stays zero: it does not have a direction.

    Args:
        vectors: (N, D), NumPy or torch, of any float type and on any device.

    Raises:
        ValueError: It is not a matrix, or holds NaN or infinity.
    """
    if hasattr(vectors, "detach"):  # NumPy cannot read torch's bfloat16, gradients and devices
        vectors = vectors.detach().float().cpu()
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"Got embeddings of shape {matrix.shape}; give a matrix with a row for each text.")
    if not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])
        raise ValueError(f"Embedding {row} holds NaN or infinity; embed that text again.")
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)  # (N, 1)
    # Rows of unit length stay the same bit for bit: a saved index does not change when it is loaded.
    off = (np.abs(norms - 1) > 1e-6) & (norms > 0)
    return matrix / np.where(off, norms, np.float32(1)) if off.any() else matrix
