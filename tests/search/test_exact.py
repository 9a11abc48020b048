"""Exact search: compared with a sort of everything, for all chunks. Mining tests the remaining rules."""

import numpy as np
import pytest

import e2rank_st.search.exact as exact_module
from e2rank_st.search.exact import Rules, nearest
from e2rank_st.search.vectors import unit_rows


def drawn(count: int, dimension: int = 8, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).normal(size=(count, dimension)))


@pytest.mark.parametrize("only", [False, True, None])
def test_chunked_equals_whole(only: bool | None, monkeypatch: pytest.MonkeyPatch):
    """Guards against documents lost where chunks of documents or blocks of queries are merged; compared with a sort."""
    vectors, queries = drawn(50), drawn(7, seed=1)
    vectors[20:30] = vectors[20]  # ties, over several chunks
    listed = [np.sort(np.random.default_rng(query).permutation(50)[:30]) for query in range(7)]
    rules = None if only is None else Rules(listed, only)
    whole = nearest(queries, vectors, 12, rules=rules)
    for query, near in enumerate(whole):
        allowed = np.ones(50, bool) if only is None else np.isin(np.arange(50), listed[query]) == only
        scores = np.where(allowed, (vectors.astype(np.float64) * queries[query].astype(np.float64)).sum(1), -np.inf)
        order = np.argsort(-scores, kind="stable")[:12]
        assert near.rows.tolist() == order.tolist()
        assert near.scores.tolist() == scores[order].tolist()
    monkeypatch.setattr(exact_module, "SCORES_AT_ONCE", 16)  # blocks of 1 to 16 queries
    for size in (1, 7, 49):
        monkeypatch.setattr(exact_module, "DOCUMENTS_AT_ONCE", size)
        for near, expected in zip(nearest(queries, vectors, 12, rules=rules), whole, strict=True):
            np.testing.assert_array_equal(near.rows, expected.rows)
            np.testing.assert_array_equal(near.scores, expected.scores)


def test_more_asked_for_than_there_is():
    """Guards against a crash, or padding rows, where candidates are few or none."""
    listed = [np.asarray([1]), np.empty(0, np.int64)]
    found = nearest(drawn(2, seed=1), drawn(2), 5, rules=Rules(listed, only=True))
    assert [near.rows.tolist() for near in found] == [[1], []]
    assert sorted(nearest(drawn(1), drawn(2), 5)[0].rows.tolist()) == [0, 1]
    assert nearest(drawn(1), drawn(2), 0)[0].rows.tolist() == []
    assert nearest(drawn(1), drawn(0), 3)[0].rows.tolist() == []
