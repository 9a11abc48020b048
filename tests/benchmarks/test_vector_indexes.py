"""Approximate search: what is measured is what an index on disk gives."""

import json
from pathlib import Path

import pytest

from e2rank_st import E2Rank, SearchIndex
from e2rank_st.benchmarks import vector_indexes
from tests.beir import write_collection

pytest.importorskip("lancedb")


def test_an_exact_search_is_the_measure(tiny: E2Rank, tmp_path: Path):
    """Guards against scores of something else than the index's hits, and against documents that are embedded twice."""
    folder = write_collection(tmp_path / "toy")
    found = json.loads(json.dumps(vector_indexes.measure(tiny, [folder], tmp_path / "kept")))
    rows = [vector_indexes.Found(**row) for row in found["results"]]
    assert [row.vector_index for row in rows] == ["exact", "int8", "rabitq"]
    assert rows[0].recall == 1 and all(0 < row.recall <= 1 for row in rows)
    assert {(row.data, row.queries) for row in rows} == {("toy", 6)}
    index = SearchIndex.open(tmp_path / "kept" / "toy.lance", tiny)
    assert len(index) == rows[0].documents
    index.optimize("exact")
    again = vector_indexes.measure(tiny, [folder], tmp_path / "kept")
    assert again["results"][0] == found["results"][0]
    assert vector_indexes.table(found).count("\n") == 5
