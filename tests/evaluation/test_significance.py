"""Intervals and tests of differences: by hand, by closed forms, and for all chunks."""

import itertools

import numpy as np
import pytest

import e2rank_st.evaluation.significance as significance
from e2rank_st.evaluation.significance import bootstrap_interval, compare, randomisation_test


def test_bootstrap_interval(monkeypatch: pytest.MonkeyPatch):
    """Guards against intervals that differ between runs or with the size of a chunk, and against wrong quantiles."""
    scores = [0.0, 0.2, 0.4, 0.9, 1.0, 0.3, 0.5]
    first = bootstrap_interval(scores, seed=1)
    assert first == bootstrap_interval(scores, seed=1)
    assert first[0] < sum(scores) / 7 < first[1]
    # Of a mean of B values, the interval is about 1.96 standard errors on either side.
    many = [float(value) for value in np.random.default_rng(0).normal(0.5, 0.1, 400)]
    low, high = bootstrap_interval(many)
    error = float(np.std(many)) / 20
    assert low == pytest.approx(np.mean(many) - 1.96 * error, abs=error / 8)
    assert high == pytest.approx(np.mean(many) + 1.96 * error, abs=error / 8)
    assert bootstrap_interval(many, seed=1) != bootstrap_interval(many, seed=2)
    assert bootstrap_interval([0.4] * 5) == pytest.approx((0.4, 0.4))
    monkeypatch.setattr(significance, "RESAMPLES_AT_ONCE", 7)
    assert bootstrap_interval(scores, seed=1) == first
    with pytest.raises(ValueError, match="no scores"):
        bootstrap_interval([])


def test_comparison_by_hand():
    """Guards against a difference of the wrong sign, and against ties that rounding turns into wins."""
    ours = {"a": 0.5, "b": 0.3, "c": 0.1 + 0.2, "d": 1.0}
    theirs = {"d": 0.5, "c": 0.3, "b": 0.4, "a": 0.2}
    found = compare("theirs", ours, theirs)
    assert found.against == "theirs"
    assert found.difference == pytest.approx((0.3 - 0.1 + 0.0 + 0.5) / 4)
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    # Of 16 sign vectors of 0.3, 0.1, 0 and 0.5, as extreme as 0.7: sums 0.7 and 0.9, both signs, each twice.
    assert found.p == 8 / 16
    assert found == compare("theirs", ours, theirs)
    with pytest.raises(ValueError, match="not the same"):
        compare("theirs", ours, {"a": 1.0})


def test_randomisation_by_hand() -> None:
    """Guards against a one-sided p-value, or one that leaves out the observed signs."""
    # Three differences of the same sign: of 8 sign vectors, two give a sum as extreme.
    assert randomisation_test([0.3, 0.5, 0.9], [0.2, 0.4, 0.8]) == 2 / 8
    assert randomisation_test([0.2, 0.4, 0.8], [0.3, 0.5, 0.9]) == 2 / 8
    assert randomisation_test([0.5, 0.5], [0.5, 0.5]) == 1.0
    # Differences 3 and -1: the sums 2, 4, -4 and -2 are all at least as extreme as 2.
    assert randomisation_test([3, 0], [0, 1]) == 1.0
    for scores in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="for the same queries"):
            randomisation_test(*scores)


def test_drawn_signs_approach_all_signs() -> None:
    """Guards against a draw that is biased, differs between runs, or ever gives p = 0."""
    first = [0.1 * (index % 5) + 0.05 for index in range(14)]
    second = [0.1 * (index % 3) for index in range(14)]
    exact = randomisation_test(first, second)
    brute = [
        sum(s * (a - b) for s, a, b in zip(signs, first, second, strict=True))
        for signs in itertools.product((1, -1), repeat=14)
    ]
    observed = sum(first) - sum(second)
    assert exact == sum(abs(value) >= observed - 1e-9 for value in brute) / 2**14
    drawn = randomisation_test(first, second, permutations=10_000, seed=1)
    assert drawn == pytest.approx(exact, abs=0.02)
    assert drawn == randomisation_test(first, second, permutations=10_000, seed=1)
    assert drawn != randomisation_test(first, second, permutations=10_000, seed=2)
    many = [1.0] * 200
    assert randomisation_test(many, [0.0] * 200, permutations=999) == 1 / 1000
