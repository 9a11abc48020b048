"""Systems and a test set → rankings, metrics, times, tokens and comparisons: what a result file holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils.logging import tqdm

from e2rank_st.benchmarks.systems import Pointwise, System, Vectors, best_first, counted_tokens, settings
from e2rank_st.evaluation.metrics import DIGITS, MAIN, evaluate, mean, separated
from e2rank_st.evaluation.significance import bootstrap_interval, compare

if TYPE_CHECKING:
    from e2rank_st.benchmarks.candidates import Candidates, Case


__all__ = ["Measured", "measure", "record"]


@dataclass
class Measured:
    """What a system did, query by query.

    Attributes:
        run: Query id → document id → score, the best first.
        seconds: Of ranking the candidates of a query with stored vectors; none for the first stage.
        tokens: That went through the model for it.
        embedding_seconds: Of embedding the candidates of some of the queries, by query.
    """

    run: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    embedding_seconds: dict[str, float] = field(default_factory=dict)


def measure(
    systems: Mapping[str, System],
    cases: Sequence[Case],
    vectors: Mapping[int, Vectors],
    *,
    own: Mapping[int, Sequence[Case]] | None = None,
    embedding_queries: int = 10,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> dict[str, Measured]:
    """Rank the candidates of every query by every system, one query at a time, as a search engine does.

    The systems take turns, so that a machine whose speed drifts treats all alike. A first call of each is not counted.

    Args:
        systems: By name.
        cases: Queries with candidates.
        vectors: Document vectors by the ``id`` of the model that made them.
        own: The same queries with other candidates, by the ``id`` of the model that retrieved them.
        embedding_queries: For how many queries it is timed what embedding their candidates takes.
        batch_size: Texts in a forward pass there.
        show_progress_bar: Whether to show one.
    """
    measured = {name: Measured() for name in systems}
    cases_of = {id(system.model): (own or {}).get(id(system.model), cases) for system in systems.values()}
    with ExitStack() as stack:
        models = {id(system.model): system.model for system in systems.values()}
        counters = {key: stack.enter_context(counted_tokens(model)) for key, model in models.items()}
        for system in systems.values():
            _timed(system, cases_of[id(system.model)][0], vectors, counters)
        for place in tqdm(range(len(cases)), desc="queries", unit="query", disable=not show_progress_bar):
            for name, system in systems.items():
                case = cases_of[id(system.model)][place]
                scores, seconds, tokens = _timed(system, case, vectors, counters)
                order = best_first(scores)
                apart = separated([scores[row] for row in order])
                found = measured[name]
                found.run[case.query_id] = dict(zip((case.ids[row] for row in order), apart, strict=True))
                if system.model is not None:
                    found.seconds[case.query_id], found.tokens[case.query_id] = seconds, tokens
    times = {
        key: _embedding_seconds(model, cases_of[key][:embedding_queries], batch_size)
        for key, model in models.items()
        if key in vectors
    }
    for name, system in systems.items():
        measured[name].embedding_seconds = times.get(id(system.model), {})
    return measured


def _timed(
    system: System, case: Case, vectors: Mapping[int, Vectors], counters: Mapping[int, Callable[[], int]]
) -> tuple[list[float], float, int]:
    """Scores, seconds and tokens."""
    key = id(system.model)
    stored = vectors[key].of(case) if key in vectors else None
    counters[key]()
    start = time.perf_counter()
    scores = system.scores(case, stored)
    return scores, time.perf_counter() - start, counters[key]()


def _embedding_seconds(model: Any, cases: Sequence[Case], batch_size: int) -> dict[str, float]:
    """Seconds to embed all candidates of each query, as a system without stored vectors has to."""
    seconds = {}
    for case in cases:
        start = time.perf_counter()
        model.encode_document(list(case.documents), batch_size=batch_size, show_progress_bar=False)
        seconds[case.query_id] = time.perf_counter() - start
    return seconds


def record(
    systems: Mapping[str, System],
    measured: Mapping[str, Measured],
    candidates: Candidates,
    *,
    relevant_from: int,
    compare_with: str,
    samples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute what a result file says of each system.

    Args:
        systems: By name.
        measured: What they did.
        candidates: With the judgements.
        relevant_from: Least grade that MAP, MRR and recall count as relevant.
        compare_with: The system that the others are compared with.
        samples: Of the bootstrap.
        seed: Of all draws.

    Raises:
        ValueError: A query has no judgements.
    """
    scores = {name: evaluate(found.run, candidates.judgements, relevant_from) for name, found in measured.items()}
    rows: dict[str, Any] = {}
    for name, system in systems.items():
        per_query = scores[name]
        main = list(per_query[MAIN].values())
        rows[name] = {
            "settings": settings(system),
            "scores": {metric: round(mean(values), DIGITS) for metric, values in per_query.items()},
            "interval": _rounded(bootstrap_interval(main, samples=samples, seed=seed)),
            "latency": _latency(measured[name], system),
            "tokens": _spread(list(measured[name].tokens.values())),
            "per_query": {MAIN: {query: round(score, DIGITS) for query, score in per_query[MAIN].items()}},
        }
        if name != compare_with:
            others = scores[compare_with][MAIN]
            found = compare(compare_with, per_query[MAIN], others, samples=samples, seed=seed)
            rows[name]["comparison"] = {
                **found._asdict(),
                "difference": round(found.difference, DIGITS),
                "interval": _rounded(found.interval),
                "p": round(found.p, DIGITS),
            }
    return rows


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]


def _latency(measured: Measured, system: System) -> dict[str, Any]:
    """Milliseconds a query, with stored document vectors and with all candidates embedded for the query."""
    stored = {query: 1000 * seconds for query, seconds in measured.seconds.items()}
    fresh = [stored[query] + 1000 * seconds for query, seconds in measured.embedding_seconds.items()]
    if isinstance(system, Pointwise):  # it stores nothing
        return {"stored": None, "fresh": _spread(list(stored.values()))}
    return {"stored": _spread(list(stored.values())), "fresh": _spread(fresh)}


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median and 95th percentile over queries."""
    if not values:
        return None
    return {
        "median": round(statistics.median(values), 3),
        "p95": round(float(np.percentile(values, 95)), 3),
        "queries": len(values),
    }
