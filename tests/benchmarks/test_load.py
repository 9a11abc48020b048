"""A server under load: what is counted are right answers, of both servers."""

import json
from dataclasses import replace

import numpy as np
import pytest

from e2rank_st import E2Rank
from e2rank_st.benchmarks import load

for library in ("fastapi", "uvicorn", "prometheus_client", "cachetools"):
    pytest.importorskip(library)


@pytest.fixture(scope="module")
def given(tiny: E2Rank) -> list[load.Request]:
    return load.requests(tiny, number=6, documents=4)


def test_requests_are_mixed_and_seeded(tiny, given):
    """Guards against a measurement of one kind of request, and against runs that ask for different things."""
    assert [one.kind for one in given[:3]] == ["rerank", "rerank stored vectors", "embed"]
    assert [one.expected.shape for one in given[:3]] == [(4,), (4,), (4, 32)]
    again, other = load.requests(tiny, 6, 4), load.requests(tiny, 6, 4, seed=1)
    assert [one.body for one in again] == [one.body for one in given] != [one.body for one in other]
    body = json.loads(given[1].body)
    assert np.shape(body["document_embeddings"]) == (4, 32)


@pytest.mark.slow  # a minute: two servers are started
def test_both_servers_are_measured(tiny, given, tmp_path):
    """Guards against answers that nobody compares, a ratio of something else, and servers that stay."""
    tiny.save_pretrained(str(tmp_path / "model"))
    wrong = replace(given[0], expected=given[0].expected + 2e-5)
    found = load.measure(str(tmp_path / "model"), [wrong, *given[1:]], clients=[2], seconds=0.6, turns=2)
    one, other = (load.Load(**row) for row in json.loads(json.dumps(found))["results"])
    assert (one.server, other.server, one.clients) == ("batching", "no batching", 2)
    for row in (one, other):
        assert row.requests > 0 and row.wrong >= 2, "the first client begins each turn with the wrong one"
        assert 0 < row.p50 <= row.p95 <= row.p99
        assert row.throughput > 0 and row.peak_bytes > 50_000_000
    assert other.ratio == 1
    assert found["environment"]["hardware"]["cpus"]
    assert load.table(found).count("\n| ") == 2


def test_a_server_that_does_not_start():
    """Guards against a wait without end, and an error that hides the reason."""
    with pytest.raises(OSError, match="no-such-model"), load.serving("./no-such-model", []):
        pytest.fail("it started")
