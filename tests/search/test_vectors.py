"""Unit vectors, and each distinct text embedded once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from torch.nn import Identity, Sequential

from e2rank_st import E2Rank
from e2rank_st.search import vectors
from e2rank_st.search.vectors import embed_distinct, unit_rows


def test_zero_rows_and_unit_rows_stay_as_they_are():
    """Guards against NaN for a text without a direction, and an index whose last bits change when it is loaded."""
    assert unit_rows([[3.0, 4.0], [0.0, 0.0]]).tolist() == [[np.float32(0.6), np.float32(0.8)], [0.0, 0.0]]
    once = unit_rows(np.random.default_rng(0).normal(size=(100, 384)))
    np.testing.assert_array_equal(unit_rows(once), once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_float_type(dtype: torch.dtype):
    """Guards against NumPy, which cannot read bfloat16 or a tensor with a gradient."""
    rows = unit_rows(torch.tensor([[2.0, 0.0]], dtype=dtype, requires_grad=True))
    assert (rows.dtype, rows.tolist()) == (np.float32, [[1.0, 0.0]])


@pytest.mark.parametrize("size", [5e-324, 1e-45, 1e-25, 1e-13, 1e13, 1e25, 1e300])
def test_rows_of_any_length(size: float):
    """Guards against zeros or infinity for vectors whose squares do not fit the type."""
    rows = np.array([[3 * size, 4 * size], [0.0, 0.0]])
    for given in (rows, rows.tolist(), torch.from_numpy(rows)):
        assert unit_rows(given).tolist() == [[np.float32(0.6), np.float32(0.8)], [0.0, 0.0]]
    if 1e-38 < size < 1e38:
        np.testing.assert_allclose(unit_rows(rows.astype(np.float32))[0], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    "rows",
    [
        [[3, 4]],
        ([3.0, 4.0],),
        [np.array([3, 4], np.float16)],
        [torch.tensor([3, 4], dtype=torch.bfloat16)],
        np.array([[3, 4]], object),
        pd.Series([[3.0, 4.0]]),
        pd.Series([np.array([3.0, 4.0])]),
        pd.DataFrame({"x": [3.0], "y": [4.0]}),
        pa.array([[3.0, 4.0]]),
        pa.array([[3.0, 4.0]], pa.list_(pa.float32(), 2)),
    ],
)
def test_rows_as_databases_give_them(rows: Any):
    """Guards against an error for the forms in which stored vectors come back."""
    assert unit_rows(rows).tolist() == [[np.float32(0.6), np.float32(0.8)]]


def test_the_matrix_is_a_copy():
    """Guards against an index that changes when its caller goes on with his own matrix."""
    given = np.eye(2, dtype=np.float32)
    unit_rows(given)[:] = 7
    assert given.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0, 2.0], r"embeddings\[0\] must be a list of vectors"),
        (np.float32(1), r"shape \(\)"),
        (None, "got NoneType"),
        (torch.ones(1, 1, 1), r"shape \(1, 1, 1\)"),
        ([[1.0], [np.nan]], "NaN.* in row 1"),
        (torch.tensor([[1.0], [torch.inf]]), "infinite values in row 1"),
        (np.array([[1, 2]], np.int8), "floating-point.*int8"),
        (np.array([[True]]), "floating-point.*bool"),
        (np.array([[1j]]), "floating-point.*complex"),
        ([["1"]], "list of numbers"),
        ([[1.0], [1.0, 2.0]], "has 2 values"),
        ([torch.ones(1), torch.ones(2)], "has 2 values"),
        (torch.ones(1, 1, dtype=torch.int64), "floating-point.*int64"),
        (torch.ones(1, 1, device="meta"), "a meta one"),
        (torch.eye(2).to_sparse(), "a sparse or nested one"),
        (np.ma.masked_array([[1.0, 2.0]], mask=[[0, 1]]), "masked array"),
        ([np.ma.masked_array([1.0, 2.0], mask=[0, 1])], "masked array"),
        (scipy.sparse.csr_matrix(np.eye(2)), "sparse matrix"),
        ({"a": [1.0]}, "got dict"),
    ],
)
def test_what_is_not_a_finite_matrix_is_refused(given: Any, message: str):
    """Guards against NaN that ranks silently, and numbers that a conversion would change without a word."""
    with pytest.raises(ValueError, match=message):
        unit_rows(given)


def test_each_distinct_text_is_embedded_once():
    """Guards against work done twice, and against rows in another order than the texts."""
    sent: list[str] = []

    def encode(texts: list[str], **options: object) -> np.ndarray:
        sent.extend(texts)
        return np.asarray([[float(ord(text)), 1.0] for text in texts])

    texts = ["b", "a", "b", "c", "a"]
    model = Sequential(Identity())
    model.encode_document = encode
    found = embed_distinct(model, texts, batch_size=2)
    assert sent == ["b", "a", "c"]
    np.testing.assert_array_equal(found, unit_rows([[float(ord(text)), 1.0] for text in texts]))


@pytest.mark.parametrize("task", ["document", "query"])
def test_many_texts_in_batches_of_equal_lengths(tiny: E2Rank, task: str, monkeypatch: pytest.MonkeyPatch):
    """Guards against vectors of other texts, and against padding that half of the work is spent on."""
    monkeypatch.setattr(vectors, "SORTED_TOGETHER", 100)
    texts = [f"{number} " + "flea " * 2 ** (number % 8) for number in range(150)]
    encode = getattr(tiny, f"encode_{task}")
    expected = unit_rows(encode(texts))
    assert padding(tiny, lambda: encode(texts)) > 0.25, "the premise: equal numbers of texts a batch cost more"
    assert padding(tiny, lambda: embed_distinct(tiny, texts, task)) < 0.1
    found = embed_distinct(tiny, [*texts, texts[3]], task)
    np.testing.assert_allclose(found, [*expected, expected[3]], atol=1e-6)


def padding(model: E2Rank, run: Callable[[], object]) -> float:
    """The share of tokens in the forward passes that are padding."""
    masks: list[torch.Tensor] = []
    hook = model[0].register_forward_pre_hook(lambda _, arguments: masks.append(arguments[0]["attention_mask"]))
    try:
        run()
    finally:
        hook.remove()
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
