"""What a caller gives → checked values: texts, numbers, candidates, and stored vectors of any common kind.

A part of the remote code of a Hub repository: see ``modeling_e2rank.py``.

Axes: B queries, N documents of one query, D dimensions.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from .documents_e2rank import Document, join_fields

__all__ = [
    "candidate_lists", "document_text", "flag", "matrix", "natural", "one_of", "one_text", "query_vectors",
    "score_lists", "share", "stored_vectors", "strings",
]  # fmt: skip


def natural(name: str, value: Any, least: int = 0) -> int:
    """Returns a whole number, of Python's, NumPy's or torch's own kind.

    Raises:
        ValueError: If it is not one, or smaller than ``least``.
    """
    is_one = hasattr(value, "__index__") and not isinstance(value, bool) and "bool" not in str(_dtype(value))
    try:
        number = operator.index(value) if is_one and not getattr(value, "ndim", 0) else None
    except (TypeError, RuntimeError):  # an array of floats; a tensor without values
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {_shown(value)}.")
    return number


def share(name: str, value: Any, least: int = 0) -> float:
    """Returns a number from ``least`` to 1.

    Raises:
        ValueError: If it is something else.
    """
    if not _is_real(value) or not least <= value <= 1:
        raise ValueError(f"{name} must be a number from {least} to 1, got {_shown(value)}.")
    return float(value)


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Returns one of the allowed words.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {_shown(value)}.")
    return value


def flag(name: str, value: Any) -> bool:
    """Returns a truth value, of Python's, NumPy's or torch's own kind.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(value, bool) or (str(_dtype(value)) == "bool" and not getattr(value, "ndim", 1)):
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {_shown(value)}.")


def _dtype(value: Any) -> Any:
    return getattr(value, "dtype", None)


def _shown(value: Any) -> str:
    """A value of any type, for a message."""
    shape = None if getattr(value, "is_nested", False) else getattr(value, "shape", None)
    return f"{value!r:.80}" if not shape else f"{type(value).__name__} of the shape {tuple(shape)}"


def strings(name: str, values: Any) -> list[str]:
    """Returns the texts of a list, a generator, an array, or a column of pandas, Arrow or ``datasets``.

    Raises:
        ValueError: If it is something else, or an entry is not a text; the message names the place.
    """
    texts: list[str] = []
    for index, value in enumerate(_entries(name, values, "strings")):
        texts.append(one_text(f"{name}[{index}]", value))
    return texts


def one_text(name: str, value: Any) -> str:
    """Returns a text as a plain string.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {type(value).__name__}: {_shown(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half of a surrogate pair, which is not text: {value!r:.80}.") from error
    return str(value)  # NumPy's strings are of a kind of their own


def _entries(name: str, values: Any, kind: str) -> Iterator[Any]:
    """The entries of anything that is a list in spirit. A table is not: iteration gives the names of its columns."""
    if hasattr(values, "columns"):
        raise ValueError(f"{name} must be a list of {kind}, got the table {type(values).__name__}. Give one column.")
    if hasattr(values, "to_pylist"):  # Arrow's own scalars are neither strings nor numbers
        return iter(values.to_pylist())
    if not isinstance(values, (str, bytes, Mapping, Set)):
        with suppress(TypeError):  # an array without dimensions says only here that it has no entries
            return iter(values)
    raise ValueError(f"{name} must be a list of {kind}, got {type(values).__name__}.")


def document_text(name: str, document: Any, template: str) -> str:
    """Returns the text of a document: a string, or a mapping with ``text`` and perhaps ``title``.

    Raises:
        ValueError: If it is something else; the message names the field and the value.
    """
    if not isinstance(document, Mapping):
        if not isinstance(document, str):
            kind = f"{type(document).__name__}: {_shown(document)}"
            raise ValueError(f"{name} must be a string, or a mapping with 'text', got {kind}.")
        return one_text(name, document)
    if document.get("text") is None:
        raise ValueError(
            f"{name} has no 'text', got the keys {_shown(list(document))}. "
            "Give a mapping with 'text' and, if there is one, 'title'; or a string."
        )
    title = "" if document.get("title") is None else one_text(f"{name}['title']", document["title"])
    return join_fields(title, one_text(f"{name}['text']", document["text"]), template)


def candidate_lists(
    documents: Any, num_queries: int, single: bool, template: str
) -> tuple[list[list[Document]], list[list[str]]]:
    """Returns the candidates of each query: as they were given, and their texts.

    There is one list for one query, a shared list, or a list for each. A shared list is one object also in the results.
    """
    if not single:
        documents = list(_entries("documents", documents, "strings or of lists"))
    if single or not documents or isinstance(documents[0], (str, Mapping)):
        given, texts = _documents("documents", documents, template)
        return [given] * num_queries, [texts] * num_queries
    if len(documents) != num_queries:
        raise ValueError(f"documents must hold one list for each query: got {len(documents)} for {num_queries}.")
    lists = [_documents(f"documents[{index}]", part, template) for index, part in enumerate(documents)]
    return [given for given, _ in lists], [texts for _, texts in lists]


def score_lists(name: str, given: Any, candidates: list[list[str]], single: bool) -> list[Tensor] | None:
    """Returns the N scores of each query's candidates in float64, or ``None`` if there are none.

    Raises:
        ValueError: If it is not one row for each query, or a row does not have one finite number for each candidate.
    """
    if given is None:
        return None
    rows = [given] if single else list(_entries(name, _plain(name, given, "rows"), "rows, one for each query"))
    if len(rows) != len(candidates):
        raise ValueError(f"{name} must hold one row for each query: got {len(rows)} for {len(candidates)}.")
    names = [name] if single else [f"{name}[{index}]" for index in range(len(rows))]
    return [_score_list(*row) for row in zip(names, rows, map(len, candidates), strict=True)]


def _score_list(name: str, given: Any, count: int) -> Tensor:
    given = _plain(name, given, "numbers")
    values = list(_entries(name, given if isinstance(given, list) else given.tolist(), "numbers"))
    if len(values) != count:
        raise ValueError(f"{name} must hold one score for each candidate: got {len(values)} for {count}.")
    scores = [_finite(f"{name}[{index}]", value) for index, value in enumerate(values)]
    return torch.tensor(scores, dtype=torch.float64)


def _finite(name: str, value: Any) -> float:
    number = value.item() if getattr(value, "ndim", 1) == 0 else value  # an entry of a list may be a tensor
    with suppress(OverflowError):
        if _is_real(number) and math.isfinite(number):
            return float(number)
    raise ValueError(f"{name} must be a finite number, got {_shown(value)}.")


def _documents(name: str, values: Any, template: str) -> tuple[list[Document], list[str]]:
    given = list(_entries(name, values, "strings"))
    return given, [document_text(f"{name}[{index}]", value, template) for index, value in enumerate(given)]


def query_vectors(given: Any, num_queries: int, single: bool, dimension: int | None) -> Tensor | None:
    """Returns the checked vectors of B queries (B, D), or ``None`` if queries must be embedded.

    One query may have its vector alone, (D,).
    """
    if given is None:
        return None
    name, given = "query_embeddings", _plain("query_embeddings", given)
    if single and _depth(name, given) == 1:
        given = [given]
    vectors = matrix(name, given)
    if tuple(vectors.shape) != (num_queries, dimension) and (num_queries or len(vectors)):
        shape = (num_queries, dimension)
        raise ValueError(f"{name} must have the shape {shape}, a vector for each query, got {tuple(vectors.shape)}.")
    return vectors


def stored_vectors(
    given: Any, candidates: list[list[str]], single: bool, dimension: int | None, passages: bool = False
) -> list[Tensor] | list[list[Tensor]] | None:
    """Returns one checked (N, D) matrix for each query, or ``None`` if documents must be embedded.

    With passages, it may also be a list of N matrices (P, D) for each query.
    """
    if given is None or not candidates:
        return None
    name, read = "document_embeddings", _fitting_passages if passages else _fitting
    given = _plain(name, given)
    is_one_list = all(texts is candidates[0] for texts in candidates)
    if single or (is_one_list and _is_shared(name, given, len(candidates[0]), len(candidates), passages)):
        return [read(name, given, len(candidates[0]), dimension)] * len(candidates)
    given = list(_entries(name, given, "matrices, one for each query"))
    if len(given) != len(candidates):
        raise ValueError(f"{name} must hold one matrix for each query: got {len(given)} for {len(candidates)}.")
    rows = enumerate(zip(given, candidates, strict=True))
    return [read(f"{name}[{index}]", part, len(texts), dimension) for index, (part, texts) in rows]


def _is_shared(name: str, given: Any, count: int, num_queries: int, passages: bool) -> bool:
    """Whether vectors of a shared list are there once, and not for each query again."""
    depth = _depth(name, given)
    if depth != 3 or not passages:
        return depth < 3
    if len(given) != count:
        return False
    if count == num_queries > 1 and all(len(_plain(name, part)) == count for part in given):
        raise ValueError(
            f"{name} may be a matrix of passages for each of {count} documents, or a matrix of vectors for each of "
            f"{count} queries. Give one such value for each query, or only one matrix of vectors."
        )
    return True


def _fitting_passages(name: str, value: Any, count: int, dimension: int | None) -> Any:
    """A vector for each document, or a matrix of passages for each."""
    value = _plain(name, value)
    if _depth(name, value) < 3:
        return _fitting(name, value, count, dimension)
    if len(value) != count:
        raise ValueError(f"{name} must hold one matrix of passages for each document: got {len(value)} for {count}.")
    return [_fitting(f"{name}[{index}]", part, None, dimension) for index, part in enumerate(value)]


def _fitting(name: str, value: Any, count: int | None, dimension: int | None) -> Tensor:
    vectors, shape = matrix(name, value), (count, dimension)
    if count is None:  # the passages of a document
        if not len(vectors) or vectors.shape[1] != dimension:
            got = tuple(vectors.shape)
            raise ValueError(f"{name} must have a vector of {dimension} values for each passage, got the shape {got}.")
        return vectors
    if tuple(vectors.shape) != shape and (count or len(vectors)):
        raise ValueError(f"{name} must have the shape {shape}, a vector for each document, got {tuple(vectors.shape)}.")
    return vectors


def matrix(name: str, value: Any) -> Tensor:
    """Returns stored vectors as a float32 matrix (N, D), for cosines only: unusually long or short rows are scaled.

    Args:
        name: A name for messages.
        value: A matrix of NumPy or torch, a table of pandas, or N vectors as databases return them: lists, arrays, or
            a column of lists of pandas or Arrow.

    Raises:
        ValueError: If it is something else, is masked or sparse, has vectors of different lengths, or values that are
            not finite floating-point numbers.
    """
    value = _plain(name, value)
    if isinstance(value, list):
        rows = [_vector(f"{name}[{index}]", row) for index, row in enumerate(value)]
        odd = next((index for index, row in enumerate(rows) if len(row) != len(rows[0])), None)
        if odd is not None:
            raise ValueError(f"{name}[{odd}] has {len(rows[odd])} values, and {name}[0] has {len(rows[0])}.")
        vectors = torch.stack(rows) if rows else torch.empty(0, 0)
    else:
        vectors = _floats(name, value, 2)
    infinite = ~vectors.isfinite().all(1)
    if infinite.any():
        raise ValueError(f"{name} has NaN or infinite values in row {int(infinite.nonzero()[0])}.")
    if vectors.numel():
        largest = torch.linalg.vector_norm(vectors, torch.inf, 1, keepdim=True)  # (N, 1), without a copy
        # Squares of such values leave the range of float32. The other rows stay the same bit for bit.
        unusual = ((largest < 1e-6) | (largest > 1e6)) & (largest > 0)
        if unusual.any():
            vectors = torch.where(unusual, vectors.double() / largest.double(), vectors.double())
    return vectors.float()


def _vector(name: str, value: Any) -> Tensor:
    value = _plain(name, value)
    if isinstance(value, list):
        if value and isinstance(value[0], bool):
            raise ValueError(f"{name} must be a list of numbers, got bool. Convert them as they were made.")
        try:
            value = torch.tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{name} must be a list of numbers: {error}.") from error
    return _floats(name, value, 1).double()


def _floats(name: str, value: Any, dimensions: int) -> Tensor:
    """An array or tensor as a tensor of float32, or of float64 if it has that precision."""
    if value.ndim != dimensions:
        kind = "vector" if dimensions == 1 else "matrix, with a vector in each row"
        raise ValueError(f"{name} must be a {kind}, got the shape {tuple(value.shape)}.")
    if isinstance(value, Tensor):
        is_float = value.is_floating_point()
    else:  # NumPy knows bfloat16 by an extension only
        is_float = (value.dtype.kind == "f" and value.dtype.itemsize <= 8) or value.dtype.name == "bfloat16"
    if not is_float:
        raise ValueError(f"{name} must be floating-point vectors, got {value.dtype}. Convert them as they were made.")
    if isinstance(value, Tensor):
        return value.detach() if value.dtype == torch.float64 else value.detach().float()
    dtype = "float64" if value.dtype.itemsize > 4 else "float32"
    # Many stored vectors need much memory: they are copied only where torch may refuse them as they are. NumPy says
    # nothing about the strides of an axis with one entry.
    is_plain = value.flags.carray and min(value.shape) > 1
    return torch.from_numpy(value.astype(dtype, copy=not is_plain))


def _plain(name: str, value: Any, kind: str = "vectors") -> Any:
    """Numbers of any kind as a tensor, a NumPy array of numbers, or a list."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
            form = "meta" if value.is_meta else "quantized" if value.is_quantized else "sparse or nested"
            raise ValueError(f"{name} must be a dense tensor with values, got a {form} one.")
        return value
    if hasattr(value, "mask") and hasattr(value, "filled"):
        raise ValueError(f"{name} must be complete, got a masked array. Fill its gaps, or leave these rows out.")
    if hasattr(value, "tocsr"):
        raise ValueError(f"{name} must be dense, got a sparse matrix. Convert it with toarray().")
    if not hasattr(value, "__array__"):
        return list(_entries(name, value.tolist() if isinstance(value, memoryview) else value, kind))
    array = value.__array__()  # a table or column, too
    if array.dtype.kind != "O":
        return array
    rows = list(_entries(name, array, kind))  # for objects NumPy cannot see more than this
    return [row[0] for row in rows] if array.ndim == 2 and array.shape[1] == 1 else rows


def _depth(name: str, value: Any) -> int:
    """How deep lists of numbers are nested: 2 for a matrix."""
    if isinstance(value, (str, bytes, Mapping, numbers.Number, type(None))):
        return 0
    value = _plain(name, value)
    return 1 + (_depth(name, value[0]) if value else 0) if isinstance(value, list) else int(value.ndim)
