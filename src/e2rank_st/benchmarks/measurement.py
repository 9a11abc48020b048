"""Systems and a test set → rankings, times and tokens, and from these the result of each system."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers.utils.logging import tqdm

from e2rank_st.benchmarks.candidates import Case
from e2rank_st.benchmarks.results import SystemResult
from e2rank_st.benchmarks.systems import Pointwise, System, best_first, parameters
from e2rank_st.evaluation.metrics import DIGITS, MAIN, Judgements, evaluate, mean, separated
from e2rank_st.evaluation.significance import bootstrap_interval, compare
from e2rank_st.provenance import Cost, counted
from e2rank_st.search.texts import TextVectors

__all__ = ["Entrant", "Measured", "measure", "results_of"]


@dataclass(frozen=True)
class Entrant:
    """A model with its systems, and the candidates that they rank.

    Attributes:
        role: Its key in the result's ``models``; empty for the first stage.
        model: The model; None for the first stage.
        systems: Its systems by name.
        cases: Queries with candidates, the same queries for all.
        index: Stored vectors of the candidates; None where there are none.
    """

    role: str
    model: Any
    systems: Mapping[str, System]
    cases: Sequence[Case]
    index: TextVectors | None = None


@dataclass
class Measured:
    """The rankings of a system and their cost, query by query.

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
    entrants: Sequence[Entrant],
    *,
    embedding_queries: int = 10,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> dict[str, Measured]:
    """Rank the candidates of every query by every system, one query at a time, as a search engine does.

    The systems take turns, so that a machine whose speed drifts treats all alike. A first call of each is not counted.
    The time to embed candidates is taken for the first ``embedding_queries``.

    Returns:
        Rankings and cost of each system, by its name.
    """
    measured = {name: Measured() for entrant in entrants for name in entrant.systems}
    with ExitStack() as stack:
        counters = [stack.enter_context(counted(entrant.model)) for entrant in entrants]
        for entrant, counter in zip(entrants, counters, strict=True):
            for system in entrant.systems.values():
                _rank(Measured(), entrant, system, 0, counter)
        for place in tqdm(range(len(entrants[0].cases)), desc="queries", unit="query", disable=not show_progress_bar):
            for entrant, counter in zip(entrants, counters, strict=True):
                for name, system in entrant.systems.items():
                    _rank(measured[name], entrant, system, place, counter)
    for entrant in entrants:
        seconds = _embedding_seconds(entrant, embedding_queries, batch_size)
        for name in entrant.systems:
            measured[name].embedding_seconds = seconds
    return measured


def _rank(measured: Measured, entrant: Entrant, system: System, place: int, counter: Cost) -> None:
    """Rank the candidates of a query, and note scores, time and tokens."""
    case = entrant.cases[place]
    vectors = entrant.index.vectors(case.documents) if entrant.index is not None else None
    tokens, start = counter.tokens, time.perf_counter()
    scores = system.scores(case, vectors)
    seconds = time.perf_counter() - start
    order = best_first(scores)
    apart = separated([scores[row] for row in order])
    measured.run[case.query_id] = dict(zip((case.ids[row] for row in order), apart, strict=True))
    if entrant.model is not None:
        measured.seconds[case.query_id], measured.tokens[case.query_id] = seconds, counter.tokens - tokens


def _embedding_seconds(entrant: Entrant, queries: int, batch_size: int) -> dict[str, float]:
    """Seconds to embed all candidates of each query, as a system without stored vectors has to."""
    seconds = {}
    for case in entrant.cases[:queries] if entrant.index is not None else ():
        start = time.perf_counter()
        entrant.model.encode_document(list(case.documents), batch_size=batch_size, show_progress_bar=False)
        seconds[case.query_id] = time.perf_counter() - start
    return seconds


def results_of(
    entrants: Sequence[Entrant],
    measured: Mapping[str, Measured],
    judgements: Judgements,
    *,
    relevant_from: int,
    compare_with: str,
) -> dict[str, SystemResult]:
    """Compute the result of each system, and compare all with one of them.

    Raises:
        ValueError: A query has no judgements.
    """
    scores = {name: evaluate(found.run, judgements, relevant_from) for name, found in measured.items()}
    results: dict[str, SystemResult] = {}
    for role, name, system in ((entrant.role, *item) for entrant in entrants for item in entrant.systems.items()):
        main, comparison = scores[name][MAIN], None
        if name != compare_with:
            found = compare(compare_with, main, scores[compare_with][MAIN])
            rounded = {"difference": round(found.difference, DIGITS), "p": round(found.p, DIGITS)}
            comparison = found._asdict() | rounded | {"interval": _rounded(found.interval)}
        results[name] = SystemResult(
            kind=system.kind,
            model=role,
            parameters=parameters(system),
            scores={metric: round(mean(values), DIGITS) for metric, values in scores[name].items()},
            per_query={query: round(score, DIGITS) for query, score in main.items()},
            interval=_rounded(bootstrap_interval(list(main.values()))),
            latency=_latency(measured[name], system),
            tokens=_spread(list(measured[name].tokens.values())),
            comparison=comparison,
        )
    return results


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]


def _latency(measured: Measured, system: System) -> dict[str, dict[str, float] | None]:
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
