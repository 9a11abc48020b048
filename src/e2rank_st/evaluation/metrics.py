"""Scores of ranked documents and judgements → metrics a query, intervals, and how two systems differ.

Metrics are trec_eval's, by pytrec-eval-terrier. It drops queries without judgements and breaks ties by document id;
here the first is an error, and :func:`separated` keeps the second from happening.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from e2rank_st.evaluation.evaluator import randomisation_test

__all__ = [
    "MAIN",
    "MEASURES",
    "Comparison",
    "Interval",
    "Judgements",
    "Run",
    "bootstrap_interval",
    "compare",
    "evaluate",
    "mean",
    "separated",
]

Run: TypeAlias = Mapping[str, Mapping[str, float]]  # query id → document id → score
Judgements: TypeAlias = Mapping[str, Mapping[str, int]]  # query id → document id → grade
PerQuery: TypeAlias = dict[str, dict[str, float]]  # metric → query id → score

# Name → (trec_eval's name, depth to which the run is cut first: recip_rank has none of its own).
MEASURES: Mapping[str, tuple[str, int | None]] = {
    **{f"ndcg@{k}": (f"ndcg_cut_{k}", None) for k in (1, 5, 10, 20)},
    "map": ("map", None),
    "mrr@10": ("recip_rank", 10),
    **{f"recall@{k}": (f"recall_{k}", None) for k in (1, 5, 10, 20, 100)},
}
MAIN = "ndcg@10"
RESAMPLES_AT_ONCE = 1000  # bootstrap samples in memory
DIGITS = 6  # of what is written; far below any difference that means something
TIED = 1e-9  # differences that are rounding


def evaluate(run: Run, judgements: Judgements, relevant_from: int = 1) -> PerQuery:
    """Compute :data:`MEASURES` for every query of a run.

    Args:
        run: Scores by query and document; equal scores would be ordered by document id.
        judgements: Grades by query and document, of all queries of the run.
        relevant_from: Least grade that MAP, MRR and recall count as relevant.

    Returns:
        For each metric, a score from 0 to 1 for each query, in the order of the run.

    Raises:
        ValueError: A query has no judgements: trec_eval would leave it out of the mean.
        ImportError: pytrec-eval-terrier is missing.
    """
    unjudged = [query for query in run if not judgements.get(query)]
    if unjudged:
        raise ValueError(f"{len(unjudged)} queries have no judgements, for example {unjudged[0]!r}; remove or judge.")
    library = _library()
    judged = {query: dict(judgements[query]) for query in run}
    found: dict[int | None, Any] = {}
    for depth in {depth for _, depth in MEASURES.values()}:
        names = {name for name, cut in MEASURES.values() if cut == depth}
        evaluator = library.RelevanceEvaluator(judged, names, relevance_level=relevant_from)
        found[depth] = evaluator.evaluate({query: _cut(scores, depth) for query, scores in run.items()})
    return {
        measure: {query: float(found[depth][query][name]) for query in run}
        for measure, (name, depth) in MEASURES.items()
    }


def _library() -> Any:
    try:
        return importlib.import_module("pytrec_eval")
    except ImportError as error:
        raise ImportError("Metrics need pytrec-eval-terrier: pip install 'e2rank-st[eval]'") from error


def _cut(scores: Mapping[str, float], depth: int | None) -> dict[str, float]:
    """The best documents, ordered as trec_eval orders them: equal scores by id, the greater first."""
    ordered = sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
    return dict(ordered[:depth])


def separated(scores: Sequence[float]) -> list[float]:
    """Set equal scores of a ranking apart by the least step of a float32, so that trec_eval keeps its order.

    Scores that are already apart in float32, which is what trec_eval compares, stay as they are.

    Args:
        scores: N scores, best first.

    Returns:
        N scores, each of them less than the one before.

    Raises:
        ValueError: The scores are not best first, or not finite.
    """
    apart: list[float] = []
    for place, score in enumerate(scores):
        if not np.isfinite(score) or (place and score > scores[place - 1]):
            raise ValueError(f"Score {place} is {score}; give finite scores, the best first.")
        value = np.float32(score)
        if apart and value >= np.float32(apart[-1]):
            apart.append(float(np.nextafter(np.float32(apart[-1]), np.float32(-np.inf))))
        else:
            apart.append(float(value))
    return apart


def mean(scores: Mapping[str, float]) -> float:
    """The mean over queries."""
    return statistics.fmean(scores.values())


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


def bootstrap_interval(
    scores: Sequence[float], *, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> Interval:
    """Confidence interval of a mean over queries, by the percentiles of resampled means (Efron 1979).

    Args:
        scores: A score for each of B queries.
        confidence: Share of the resampled means inside the interval.
        samples: How often B queries are drawn with replacement.
        seed: Of the draws.

    Raises:
        ValueError: There are no scores.
    """
    if not scores:
        raise ValueError("Got no scores to resample; give at least one.")
    values, generator = np.asarray(scores, np.float64), np.random.default_rng(seed)
    means: list[float] = []
    for start in range(0, samples, RESAMPLES_AT_ONCE):
        shape = (min(RESAMPLES_AT_ONCE, samples - start), len(values))
        means.extend(values[generator.integers(len(values), size=shape)].mean(axis=1))
    outside = (1 - confidence) / 2
    low, high = np.quantile(means, (outside, 1 - outside))
    return Interval(float(low), float(high))


class Comparison(NamedTuple):
    """How a system differs from another on the same queries.

    Attributes:
        against: The other system.
        difference: Mean difference.
        interval: Bootstrap interval of it.
        p: Two-sided p-value of the paired randomisation test.
        wins: Queries on which the system is better.
        ties: Queries on which both are equal.
        losses: The others.
    """

    against: str
    difference: float
    interval: Interval
    p: float
    wins: int
    ties: int
    losses: int


def compare(
    against: str, scores: Mapping[str, float], others: Mapping[str, float], *, samples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two systems, query by query.

    Args:
        against: Name of the other system.
        scores: A score for each query.
        others: The other system's.
        samples: Bootstrap samples; the randomisation test draws ten times as many.
        seed: Of all draws.

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
