"""Scores of two systems on the same queries → a test whether their difference is more than chance.

Axes: B queries.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Comparison", "bootstrap_interval", "compare", "randomisation_test"]

RESAMPLES_AT_ONCE = 1000  # bootstrap samples in memory
SIGNS_AT_ONCE = 4096  # sign vectors of the randomisation test in memory
TIED = 1e-9  # smaller differences are rounding
Signs: TypeAlias = NDArray[np.float64]


def randomisation_test(
    first: Sequence[float], second: Sequence[float], *, permutations: int = 100_000, seed: int = 0
) -> float:
    """Test whether two systems differ on the same queries: Fisher's paired randomisation test (Smucker et al. 2007).

    Under the null hypothesis, the sign of each query's difference is random, like a coin. All sign vectors are tried if
    their number is at most ``permutations``; otherwise ``permutations`` vectors are drawn.

    Args:
        first: A score of the first system for each of B queries.
        second: The scores of the second system.
        permutations: Largest number of sign vectors.
        seed: Seed of the draws.

    Returns:
        The two-sided p-value of the mean difference.

    Raises:
        ValueError: The lists are empty or differ in length.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"Got {len(first)} and {len(second)} scores; give both for the same queries, at least one.")
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)  # (B,)
    # Sums in different orders differ in their last bits; the margin makes equal sums count as equal.
    observed = abs(differences.sum()) - 1e-9
    exact = 2 ** min(len(differences), 62) <= permutations
    signs = (_all_signs if exact else _drawn_signs)(len(differences), permutations, seed)
    extreme = sum(int((np.abs(chunk @ differences) >= observed).sum()) for chunk in signs)
    # All sign vectors include the observed one; the drawn vectors do not, so it is added.
    return extreme / 2 ** len(differences) if exact else (extreme + 1) / (permutations + 1)


def _all_signs(number: int, *_: int) -> Iterator[Signs]:
    for start in range(0, 2**number, SIGNS_AT_ONCE):
        codes = np.arange(start, min(start + SIGNS_AT_ONCE, 2**number))
        yield np.where(codes[:, None] >> np.arange(number) & 1, 1.0, -1.0)


def _drawn_signs(number: int, permutations: int, seed: int) -> Iterator[Signs]:
    generator = np.random.default_rng(seed)
    for start in range(0, permutations, SIGNS_AT_ONCE):
        yield generator.choice((-1.0, 1.0), size=(min(SIGNS_AT_ONCE, permutations - start), number))


def bootstrap_interval(scores: Sequence[float], *, samples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Compute the 95 % confidence interval of a mean over queries, by percentiles of resampled means (Efron 1979).

    Args:
        scores: A score for each of B queries.
        samples: Number of samples; each draws B queries with replacement.
        seed: Seed of the draws.

    Raises:
        ValueError: Scores are missing.
    """
    if not scores:
        raise ValueError("Got no scores to resample; give at least one.")
    values, generator = np.asarray(scores, np.float64), np.random.default_rng(seed)
    means: list[float] = []
    for start in range(0, samples, RESAMPLES_AT_ONCE):
        shape = (min(RESAMPLES_AT_ONCE, samples - start), len(values))
        means.extend(values[generator.integers(len(values), size=shape)].mean(axis=1))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


class Comparison(NamedTuple):
    """The difference of a system from a second one, on the same queries.

    Attributes:
        against: Name of the second system.
        difference: Mean difference.
        interval: Bounds of its bootstrap interval.
        p: Two-sided p-value of the paired randomisation test.
        wins: Number of queries on which the system is better.
        ties: Number of queries on which both are equal.
        losses: Number of queries on which the system is worse.
    """

    against: str
    difference: float
    interval: tuple[float, float]
    p: float
    wins: int
    ties: int
    losses: int


def compare(
    against: str, scores: Mapping[str, float], others: Mapping[str, float], *, samples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two systems, query by query.

    Args:
        against: Name of the second system.
        scores: A score of the first system for each query.
        others: The scores of the second system.
        samples: Bootstrap samples; the randomisation test draws ten times as many.
        seed: Seed of all draws.

    Raises:
        ValueError: The queries are not the same.
    """
    if scores.keys() != others.keys():
        raise ValueError(f"Got {len(scores)} and {len(others)} queries that are not the same; score the same ones.")
    first, second = list(scores.values()), [others[query] for query in scores]
    differences = [a - b for a, b in zip(first, second, strict=True)]
    wins = sum(difference > TIED for difference in differences)
    losses = sum(difference < -TIED for difference in differences)
    return Comparison(
        against,
        statistics.fmean(differences),
        bootstrap_interval(differences, samples=samples, seed=seed),
        randomisation_test(first, second, permutations=10 * samples, seed=seed),
        wins,
        len(differences) - wins - losses,
        losses,
    )
