"""Texts → unit vectors, each distinct text embedded once. Vectors of any kind → a matrix of unit rows.

Axes: N texts, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import distributed
from transformers.utils.logging import tqdm

from e2rank_st.arguments_e2rank import matrix, strings
from e2rank_st.console import progress_wanted
from e2rank_st.embedding_e2rank import Embedder, token_batches

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Matrix", "Rows", "distinct", "embed_distinct", "read_texts", "unit_rows"]

Matrix: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]  # row numbers in a matrix

logger = logging.getLogger(__name__)

SORTED_TOGETHER = 8_192  # texts


def embed_distinct(
    model: SentenceTransformer,
    texts: Sequence[str],
    task: Literal["document", "query"] = "document",
    *,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> Matrix:
    """Embed each distinct text once, by the model's ``encode_document`` or ``encode_query``.

    Equal texts therefore get exactly the same vector and the same score. Many texts are put into batches of almost
    equal lengths, as ``rerank`` does it.

    Args:
        model: Any Sentence-Transformers model.
        texts: N texts.
        task: What the texts are to the model.
        batch_size: Most texts in a forward pass.
        show_progress_bar: Whether to show a bar on stderr; by default, the level of the library's logger decides.

    Returns:
        Unit vectors in the order of ``texts``, (N, D).
    """
    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    encode = partial(getattr(model, f"encode_{task}"), convert_to_numpy=True)
    shown = progress_wanted(show_progress_bar, logger)
    reranker: Any = next((part for part in model.children() if hasattr(part, "embedder")), None)
    # Elsewhere a batch of few texts costs more: on a server, and where processes share each batch.
    is_here = isinstance(model[0], Transformer) and not (distributed.is_available() and distributed.is_initialized())
    if reranker is not None and is_here and len(row_of) > batch_size:
        batches = partial(_batches, reranker.embedder(), task, batch_size, model.device.type)
        found = _embed_by_length(encode, list(row_of), batches, shown)
    else:
        found = encode(list(row_of), batch_size=batch_size, show_progress_bar=shown)
    vectors = unit_rows(found)
    return vectors if len(row_of) == len(texts) else vectors[[row_of[text] for text in texts]]


def _batches(embedder: Embedder, task: str, batch_size: int, device: str, texts: Sequence[str]) -> list[list[int]]:
    """The places of distinct texts in each batch."""
    limit = embedder.limit(task)
    found = embedder.texts.own.text_ids(texts, embedder.prompt(task), limit)
    return token_batches([min(len(ids), limit or len(ids)) for ids in found.values()], batch_size, device)


def _embed_by_length(
    encode: Callable[..., Any], texts: list[str], batches: Callable[[Sequence[str]], list[list[int]]], shown: bool
) -> Any:
    parts, places = [], list[int]()
    with tqdm(total=len(texts), desc="texts", unit="text", disable=not shown) as progress:
        for start in range(0, len(texts), SORTED_TOGETHER):
            part = texts[start : start + SORTED_TOGETHER]
            for rows in batches(part):
                chosen = [part[row] for row in rows]
                parts.append(encode(chosen, batch_size=len(chosen), show_progress_bar=False))
                places += [start + row for row in rows]
                progress.update(len(rows))
    return np.concatenate(parts)[np.argsort(places)]


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
