"""Texts → unit vectors, each distinct text embedded once. Vectors of any kind → a matrix of unit rows.

Axes: N texts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Matrix", "Rows", "distinct", "embed_distinct", "read_texts", "unit_rows"]

Matrix: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]  # row numbers in a matrix

ROWS_AT_ONCE = 2**14  # of a matrix in float64


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


def read_texts(texts: Iterable[str]) -> list[str]:
    """Read the texts of an index from a list, a tuple, an array, a column of a table or a generator.

    Raises:
        ValueError: They are not a row of strings, or there are none.
    """
    kind = type(texts).__name__
    # A set does not have an order, and a table does not say which column.
    if isinstance(texts, (str, bytes, Mapping, Set)) or getattr(texts, "ndim", 1) != 1:
        raise ValueError(f"Got a {kind} as the texts of an index; give one list or column of strings.")
    try:
        found: list[Any] = texts.to_pylist() if hasattr(texts, "to_pylist") else list(texts)
    except TypeError as error:
        raise ValueError(f"Got a {kind} as the texts of an index; give one list or column of strings.") from error
    for position, text in enumerate(found):
        if not isinstance(text, str):
            raise ValueError(f"Text {position} is a {type(text).__name__}: {text!r:.80}; give strings.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Text {position} holds half of a surrogate pair at character {error.start}: {text!r:.80}; give text."
            ) from error
    if not found:
        raise ValueError("Got no texts; an index needs at least one.")
    return [str(text) for text in found]  # NumPy has strings of its own, and Arrow, too


def distinct(lists: Iterable[Iterable[str]]) -> list[str]:
    """Each text of some lists once, in the order in which it first appears."""
    return list(dict.fromkeys(text for texts in lists for text in texts))


def unit_rows(vectors: Any) -> Matrix:
    """Return a matrix as float32 with rows of unit length. A zero row stays zero: it does not have a direction.

    Args:
        vectors: (N, D), an array, a tensor of any float type and on any device, or a list of rows.

    Returns:
        A new matrix. Float32 rows of unit length stay the same bit for bit, so a saved index does not change when it is
        loaded.

    Raises:
        ValueError: It is not a matrix of floating-point numbers, or holds NaN or infinity.
    """
    given = _floats(vectors)
    if given.ndim != 2:
        raise ValueError(f"Got embeddings of shape {given.shape}; give a matrix with a row for each text.")
    units = np.empty(given.shape, np.float32)
    with np.errstate(over="ignore"):  # infinity is found below, and a norm that is too large is computed again
        for start in range(0, len(given), ROWS_AT_ONCE):
            block = given[start : start + ROWS_AT_ONCE].astype(np.float64)
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                row = start + int(np.argmin(finite))
                raise ValueError(f"Embedding {row} holds NaN or infinity; embed that text again.")
            units[start : start + ROWS_AT_ONCE] = _units(block)
    return units


def _units(block: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide the rows by their norms, except those of norm 1 in float32."""
    norms = np.linalg.norm(block, axis=1, keepdims=True)  # (n, 1)
    peaks = np.abs(block).max(axis=1, keepdims=True, initial=0)
    off = ~(np.abs(norms - 1) <= 1e-6) & (peaks > 0)
    # By the largest value first: the square of a tiny or huge number is zero or infinity.
    scaled = block / np.where(off, peaks, 1)
    units: NDArray[np.float64] = scaled / np.where(off, np.linalg.norm(scaled, axis=1, keepdims=True), 1)
    return units


def _floats(vectors: Any) -> NDArray[Any]:
    """Read vectors of any kind as an array of floating-point numbers that NumPy knows."""
    if isinstance(vectors, (list, tuple)) and any(isinstance(row, torch.Tensor) for row in vectors):
        vectors = [torch.as_tensor(row) for row in vectors]
        if len({row.shape for row in vectors}) > 1:
            raise ValueError(f"Got embeddings of the shapes {vectors[0].shape}, ...; give rows of one length.")
        vectors = torch.stack(vectors)
    if isinstance(vectors, torch.Tensor):
        if vectors.layout != torch.strided or vectors.is_nested or vectors.is_meta or not vectors.is_floating_point():
            kind = "meta" if vectors.is_meta else f"{vectors.layout} {vectors.dtype}"
            raise ValueError(f"Got embeddings as a {kind} tensor; give dense floating-point numbers.")
        vectors = vectors.detach().cpu()
        # NumPy does not know bfloat16; float64 stays, because float32 would lose its smallest numbers.
        vectors = (vectors if vectors.dtype == torch.float64 else vectors.float()).numpy()
    parts = vectors if isinstance(vectors, (list, tuple)) else ()
    if any(np.ma.isMaskedArray(part) for part in (vectors, *parts)) or hasattr(vectors, "tocsr"):
        raise ValueError(f"Got masked or sparse embeddings ({type(vectors).__name__}); give all numbers of the matrix.")
    try:
        array = np.asarray(vectors)
        # A list of Python's numbers does not have a type; a table of a database has the type "object".
        if array.dtype == object or (array.dtype.kind in "iub" and not hasattr(vectors, "dtype")):
            array = np.asarray(array.tolist(), np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"Got embeddings that are not a matrix ({error}); give rows of numbers, of one length."
        ) from error
    if array.dtype.kind != "f":
        raise ValueError(f"Got embeddings of type {array.dtype}; give floating-point numbers.")
    return array
