"""Queries with candidates: whatever does not fit together is refused at the door."""

import pytest

from e2rank_st.benchmarks.candidates import Candidates, Case

CASE = Case("q", "a query", ("a", "b", "c"), ("one", "two", "three"), (3.0, 2.0, 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ("a", "b", "a")}, "has the candidate 'a' twice"),
        ({"scores": (1.0, 2.0, 0.5)}, "a candidate with score 2.0 follows one with 1.0"),
    ],
)
def test_bad_candidates_are_refused(change: dict, message: str):
    """Guards against a document that counts twice, and an order that the scores do not have."""
    with pytest.raises(ValueError, match=message):
        Case(**{**vars(CASE), **change})


def test_mismatches_are_refused():
    """Guards against a silent zero where candidates and judgements are of different sets."""
    other = Case(**{**vars(CASE), "query_id": "p"})
    known = {"q": {"a": 1}, "p": {"a": 1}}
    for cases, judged, message in (
        ((CASE, CASE), {"q": {"a": 1}}, "query 'q' comes twice"),
        ((CASE,), {"1": {"a": 1}}, "None of 1 queries is judged: candidates have ids such as 'q', judgements '1'"),
        ((CASE, other), {"q": {"a": 1}}, "1 of 2 queries have no judgements: 'p'. .*--judged-only"),
        ((CASE,), known, "1 of 2 judged queries have no candidates: 'p'"),
        ((CASE,), {"q": {"z": 1}}, "No candidate of any query is judged: .* 'a', 'b', 'c', judgements 'z'"),
    ):
        with pytest.raises(ValueError, match=message):
            Candidates(cases, judged, "bm25").checked()
    assert Candidates((CASE, other), {"q": {"a": 1}}, "bm25").checked(judged_only=True).cases == (CASE,)
    assert Candidates((CASE, other), known, "bm25").checked().cases == (CASE, other)


def test_limit_marks_a_set_partial():
    """Guards against a smoke run that passes for a whole one, and against a whole one that does not."""
    other = Case(**{**vars(CASE), "query_id": "p"})
    both = Candidates((CASE, other), {"q": {"a": 1}, "p": {"a": 1}}, "bm25")
    assert both.limited(1).cases == (CASE,)
    assert both.limited(1).partial
    assert not both.limited(2).partial
    assert not both.limited(None).partial
