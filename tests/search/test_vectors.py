"""Unit vectors, and each distinct text embedded once."""

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize(
    ("vectors", "message"), [([1.0, 2.0], r"shape \(2,\)"), ([[1.0], [np.nan]], "Embedding 1 holds NaN")]
)
def test_what_is_not_a_finite_matrix_is_refused(vectors: list, message: str):
    """Guards against NaN that ranks silently."""
    with pytest.raises(ValueError, match=message):
        unit_rows(vectors)


def test_each_distinct_text_is_embedded_once():
    """Guards against work done twice, and against rows in another order than the texts."""
    sent: list[str] = []

    def encode(texts: list[str], **options: object) -> np.ndarray:
        sent.extend(texts)
        return np.asarray([[float(ord(text)), 1.0] for text in texts])

    texts = ["b", "a", "b", "c", "a"]
    vectors = embed_distinct(encode, texts, batch_size=2)
    assert sent == ["b", "a", "c"]
    np.testing.assert_array_equal(vectors, unit_rows([[float(ord(text)), 1.0] for text in texts]))
