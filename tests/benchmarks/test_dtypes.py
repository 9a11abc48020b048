"""What a smaller type changes in rankings: three ways on the same candidates."""

import copy

import torch

from e2rank_st import E2Rank
from e2rank_st.benchmarks import dtypes
from tests.benchmarks.data import write_beir, write_task


def test_three_ways_on_given_and_own_candidates(tiny: E2Rank, tmp_path):
    """Guards against shares of something else: float32 changes nothing to itself, and each way ranks all queries."""
    data = write_task(tmp_path / "data")
    write_beir(data / "nfcorpus")
    tiny.save(str(tmp_path / "model"))
    found = dtypes.measure([str(tmp_path / "model")], ["dl21", "nfc"], data, vectors=tmp_path / "kept")
    rows = [dtypes.Found(**row) for row in found]
    assert [row.way for row in rows] == ["float32", "bfloat16", "bfloat16, document vectors in float32"] * 2
    assert [row.queries for row in rows] == [6] * 3 + [5] * 3
    for row in rows:
        assert 0 <= row.replaced <= row.reordered <= 1
        assert 0 < row.score <= 1
        assert row.way != "float32" or row.reordered == 0
    assert any(row.reordered for row in rows), "the premise: vectors of bfloat16 are others"
    assert dtypes.table(found).count("\n| ") == 6, "the header comes first"


def test_the_kept_vectors_are_those_of_a_type(tiny: E2Rank, tmp_path):
    """Guards against float32's vectors in the line of bfloat16: both are kept in one folder."""
    data = write_task(tmp_path / "data")
    tiny.save(str(tmp_path / "model"))
    options = {"names": [str(tmp_path / "model")], "tasks": ["dl21"], "data_dir": data}
    assert dtypes.measure(**options, vectors=tmp_path / "kept") == dtypes.measure(**options)


def test_rounded_products_are_those_of_the_type(tiny: E2Rank, facts):
    """Guards against other values than a processor with the instructions has: only the order of a sum may differ."""
    own = copy.deepcopy(tiny).to(torch.bfloat16)
    rounded = copy.deepcopy(own)
    dtypes.with_rounded_products(rounded)
    layers = [type(module).__name__ for module in rounded.modules()]
    assert "RoundedLinear" in layers and "Linear" not in layers
    one, other = (model.encode_document(facts, convert_to_tensor=True) for model in (own, rounded))
    assert torch.cosine_similarity(one, other).min() > 0.999
    for layer in (module for module in rounded.modules() if isinstance(module, torch.nn.Linear)):
        given = torch.randn(5, layer.in_features, dtype=torch.bfloat16)
        bias = None if layer.bias is None else layer.bias.double()
        expected = torch.nn.functional.linear(given.double(), layer.weight.double(), bias).bfloat16()
        assert torch.allclose(layer(given), expected, rtol=2**-7, atol=1e-6)
