"""Scores of ranked documents and judgements → metrics of each query.

pytrec-eval-terrier computes the metrics of runs as trec_eval does. It drops queries without judgements; here, such a
query is an error. It breaks ties by document id; :func:`separated` prevents ties.
"""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

__all__ = [
    "MAIN",
    "MEASURES",
    "Grade",
    "Judgements",
    "Run",
    "evaluate",
    "mean",
    "ndcg",
    "separated",
]

Run: TypeAlias = Mapping[str, Mapping[str, float]]  # query id → document id → score
Judgements: TypeAlias = Mapping[str, Mapping[str, int]]  # query id → document id → grade
Grade: TypeAlias = float | None
PerQuery: TypeAlias = dict[str, dict[str, float]]  # metric → query id → score

# Name → (trec_eval's name, depth to which the run is cut first, because recip_rank does not cut).
MEASURES: Mapping[str, tuple[str, int | None]] = {
    **{f"ndcg@{k}": (f"ndcg_cut_{k}", None) for k in (1, 5, 10, 20)},
    "map": ("map", None),
    "mrr@10": ("recip_rank", 10),
    **{f"recall@{k}": (f"recall_{k}", None) for k in (1, 5, 10, 20, 100)},
}
MAIN = "ndcg@10"
DIGITS = 6  # of written scores: finer than any difference that matters


def evaluate(run: Run, judgements: Judgements, relevant_from: int = 1) -> PerQuery:
    """Compute :data:`MEASURES` for every query of a run.

    Args:
        run: Scores by query and document. Equal scores are sorted by document id.
        judgements: Grades by query and document, for every query of the run.
        relevant_from: Least grade that MAP, MRR and recall count as relevant.

    Returns:
        For each metric, a score from 0 to 1 for each query, in the order of the run.

    Raises:
        ValueError: A query lacks judgements; trec_eval would leave it out of the mean.
        ImportError: pytrec-eval-terrier is missing.
    """
    unjudged = [query for query in run if not judgements.get(query)]
    if unjudged:
        raise ValueError(f"{len(unjudged)} queries lack judgements, for example {unjudged[0]!r}; remove or judge them.")
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
    """Return the best documents in trec_eval's order: equal scores by id, the greater id first."""
    ordered = sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
    return dict(ordered[:depth])


def separated(scores: Sequence[float]) -> list[float]:
    """Separate equal scores of a ranking by the least step of a float32, to make trec_eval keep the order.

    trec_eval compares float32 numbers. Scores that differ in float32 stay the same.

    Args:
        scores: N scores, best first.

    Returns:
        N scores, each less than the one before.

    Raises:
        ValueError: The scores are not sorted, best first, or not finite.
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
    """Return the mean over queries."""
    return statistics.fmean(scores.values())


def ndcg(grades: Sequence[Grade], ideal: Iterable[Grade] | None = None) -> float:
    """Compute nDCG@10 as trec_eval's ``ndcg_cut`` (Järvelin and Kekäläinen 2002): gain grade, discount log2(1 + rank).

    Args:
        grades: Grades of the documents in the order of the ranking; None for an unjudged one.
        ideal: Grades of all judged documents of the query, in the ranking or not; by default ``grades``.

    Returns:
        A number from 0 to 1; 0 for a query without a relevant document.
    """
    best = sorted((_gain(grade) for grade in (grades if ideal is None else ideal)), reverse=True)
    perfect = _dcg(best[:10])
    return _dcg([_gain(grade) for grade in grades[:10]]) / perfect if perfect else 0.0


def _gain(grade: Grade) -> float:
    return max(grade or 0.0, 0.0)


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
