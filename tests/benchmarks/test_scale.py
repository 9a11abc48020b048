"""Growth of an index: what is measured is what an index does."""

import json
from pathlib import Path

import numpy as np
import pytest

from e2rank_st.benchmarks import scale
from e2rank_st.search.vectors import unit_rows


def test_sizes_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a recall against the wrong truth, sizes that are not those on disk, and folders that stay."""
    monkeypatch.setattr(scale, "TOGETHER", 200)
    monkeypatch.setattr(scale, "KINDS", ("exact", "int8"))
    real = unit_rows(np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32))
    took = scale.Embedded(documents=10, characters=5_000, tokens=900, seconds=3.6, cores=2)
    found = scale.measure(real, took, [600, 300], tmp_path)
    assert not list(tmp_path.iterdir())
    rows = [scale.Scale(**row) for row in json.loads(json.dumps(found))["results"]]
    assert [(row.documents, row.vector_index) for row in rows] == [
        (300, "exact"),
        (300, "int8"),
        (600, "exact"),
        (600, "int8"),
    ]
    assert [row.recall for row in rows if row.vector_index == "exact"] == pytest.approx([1, 1], abs=0.01)
    assert all(row.recall > 0.9 for row in rows)
    assert all(row.data_bytes > row.documents * 16 * 2 for row in rows)
    assert [row.index_bytes > 0 for row in rows] == [False, True, False, True]
    assert found["environment"]["hardware"]["cpus"]
    assert scale.table(found).count("\n") == 6


def test_mixes_are_seeded_and_near_each_other():
    """Guards against vectors without neighbours, for which any search looks bad."""
    real = unit_rows(np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32))
    one, again, other = (next(scale._mixed(real, 1000, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not (one == other).all()
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    assert np.sort(one @ one[0])[-2] > 0.6


def test_a_plan_in_closed_form():
    """Guards against a plan of the wrong size, unit or number of cores."""
    row = {"recall": 1.0, "milliseconds": 1.0, "lookup_milliseconds": 1.0, "write_seconds": 1.0, "peak_bytes": 1}
    sizes = {"exact": (0, 0.0), "int8": (500_000, 3.6), "rabitq": (100_000, 1.0)}
    results = [
        {**row, "documents": 1_000, "vector_index": name, "data_bytes": 0, "index_bytes": size, "build_seconds": build}
        for name, (size, build) in sizes.items()
    ]
    took = {"documents": 10, "characters": 5_000, "tokens": 900, "seconds": 3.6, "cores": 2}
    lines = scale.plan({"dimension": 500, "embedded": took, "results": results}).splitlines()
    assert [cell.strip() for cell in lines[-1].split("|")[1:-1]] == [
        "1,000,000,000", "1,000.0", "500.0", "500.0", "100.0", "200,000", "131", "1,000.00",
    ]  # fmt: skip
