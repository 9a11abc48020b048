"""How cost grows: what is ranked, and what is embedded. No test looks at a time."""

import json
import os

import pytest

from e2rank_st import E2Rank
from e2rank_st.benchmarks import growth

pytest.importorskip("lancedb")


def test_sizes_and_ways(tiny: E2Rank, facts, monkeypatch):
    """Guards against a size that was not ranked, and tokens of something else than the collection."""
    monkeypatch.setattr(growth, "CANDIDATES", (10, 30))
    monkeypatch.setattr(growth, "CHARACTERS", (100, 3_000))
    monkeypatch.setattr(growth, "REPEAT", 1)
    monkeypatch.setattr("e2rank_st.benchmarks.meter.SIDE", {"cpu": 64})
    before = dict(os.environ)
    found = json.loads(json.dumps(growth.measure(tiny, facts)))
    assert dict(os.environ) == before
    points = [growth.Point(**point) for point in found["points"]]
    assert [point.size for point in points] == [10, 30, *(100, 3_000) * 2]
    assert len({point.grows for point in points}) == 3
    rates = [growth.Rate(**rate) for rate in found["rates"]]
    ways = ["encode_document", "SearchIndex.create", "encode_document, 2 processes"]
    assert [rate.way for rate in rates] == ways
    tokens = sum(len(tiny.tokenizer(text)["input_ids"]) for text in facts)
    assert all(rate.documents == len(facts) and tokens <= rate.tokens <= tokens + len(facts) for rate in rates)
    assert all(rate.of_floor > 0 for rate in rates)
    text = growth.tables(found)
    assert text.count("\n| ") == len(points) + len(rates) + 2, "two headers, the first behind a blank line"
