"""Texts → unit vectors, each distinct text embedded once. Vectors of any kind → a matrix of unit rows.

Axes: N texts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from e2rank_st.arguments_e2rank import matrix, strings

__all__ = ["Matrix", "Rows", "distinct", "embed_distinct", "read_texts", "unit_rows"]

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


def read_texts(texts: Any) -> list[str]:
    """Read the texts of an index from a list, a tuple, an array, a column of a table or a generator.

    Raises:
        ValueError: They are not a row of strings, or there are none.
    """
    found = strings("texts", texts)
    if not found:
        raise ValueError("Got no texts; an index needs at least one.")
    return found


def distinct(lists: Iterable[Iterable[str]]) -> list[str]:
    """Each text of some lists once, in the order in which it first appears."""
    return list(dict.fromkeys(text for texts in lists for text in texts))


def unit_rows(vectors: Any, name: str = "embeddings") -> Matrix:
    """Return a matrix as float32 with rows of unit length. A zero row stays zero: it does not have a direction.

    Args:
        vectors: (N, D), of any kind that :func:`~e2rank_st.modeling_e2rank.matrix` reads.
        name: A name for messages.

    Returns:
        A new matrix. Rows of unit length stay the same bit for bit, so a saved index does not change when it is loaded.

    Raises:
        ValueError: It is not a matrix of floating-point numbers, or holds NaN or infinity.
    """
    rows: Matrix = matrix(name, vectors).cpu().numpy().copy()
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, None]  # (N, 1)
    off = (np.abs(norms - 1) > 1e-6) & (norms > 0)
    np.divide(rows, norms, out=rows, where=off, casting="same_kind")
    return rows
