"""Judged queries → whether reranking is worth it on them, and with which settings.

Settings that are chosen on some queries look too good on the same ones. Here they are chosen on four fifths of the
queries and judged by the rest, many times over (repeated cross-validation), so the gain is what other queries of this
kind may expect.

Axes: B queries, S settings.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from e2rank_st.console import progress_wanted
from e2rank_st.evaluation.metrics import Grade
from e2rank_st.evaluation.significance import Comparison, compare
from e2rank_st.evaluation.trials import FIRST_STAGE, JudgedLists, Scores, Setting, Trials, run_trials
from e2rank_st.folders.saved import listwise_config
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.search.texts import TextVectors
from e2rank_st.search.vectors import distinct
from e2rank_st.storage import read_json, write_json

__all__ = [
    "LEAST_GAIN",
    "LEAST_QUERIES",
    "Tuning",
    "Verdict",
    "chance",
    "cross_validate",
    "judge",
    "tune",
    "write_setting",
]

Counts: TypeAlias = NDArray[np.int64]
Verdict: TypeAlias = Literal["rerank", "do not rerank", "cannot be told"]

LEAST_QUERIES = 30  # fewer do not give a verdict
LEAST_GAIN = 0.01  # of nDCG@10: less is not worth a forward pass a query
LEVEL = 0.05  # of significance
FOLDS, REPEATS = 5, 20  # of cross-validation
SAMPLES = 2_000  # of the randomisation test
# A two-sided test at 5 % finds a gain of this many standard errors in 80 % of samples: 1.96 + 0.84.
STANDARD_ERRORS = 2.80

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuning:
    """Whether reranking is worth it, and with which settings.

    Scores are mean nDCG@10 over queries, from 0 to 1.

    Attributes:
        verdict: ``"rerank"``, ``"do not rerank"`` or ``"cannot be told"``.
        setting: The best setting on all queries. Its first_stage_weight is 1 if none beats the first stage.
        queries: B.
        gain: Held-out scores against the first stage: of settings that were chosen on other queries.
        over_embedding: The same against the plain embedding.
        agreement: Share of the choices in cross-validation that fell on ``setting``.
        queries_needed: About how many queries would tell; None if these do.
        first_stage: Score of the first stage.
        embedding: Score of the plain embedding.
        held_out: Score of the chosen settings on queries that did not choose them.
        configured: Score of the model's own configuration; None if that mixes scores which were not given.
        trials: Each setting with its score on all queries, best first. The best ones look too good.
        per_query: Scores of each query of ``first_stage``, ``embedding`` and ``held_out``.
        seed: Seed of the folds and of the tests.
    """

    verdict: Verdict
    setting: Setting
    queries: int
    gain: Comparison
    over_embedding: Comparison
    agreement: float
    queries_needed: int | None
    first_stage: float
    embedding: float
    held_out: float
    configured: float | None
    trials: tuple[tuple[Setting, float], ...]
    per_query: dict[str, list[float]]
    seed: int = 0

    def sentences(self) -> list[str]:
        """Returns the verdict, what it rests on, and the comparison with the plain embedding."""
        lines = [f"{self._advice()}. {_told(self.gain)}."]
        if self.per_query["first_stage"] != self.per_query["embedding"]:
            lines.append(f"{_told(self.over_embedding)}.")
        if self.queries < LEAST_QUERIES:
            lines.append(
                f"Only {self.queries} queries: an interval of so few is itself a guess. Judge {LEAST_QUERIES} or more."
            )
        return lines

    def _advice(self) -> str:
        if self.verdict == "rerank":
            plain = " (the plain embedding, without a prompt)" if self.setting.query_weight == 1 else ""
            return f"Rerank, with these settings: {self.setting}{plain}"
        if self.verdict == "do not rerank":
            worth = f"{100 * LEAST_GAIN:g} point of nDCG@10"
            return f"Do not rerank: the first stage is as good, or a gain of {worth} is out of reach"
        return f"Cannot be told: about {self.queries_needed} judged queries are needed, and here are {self.queries}"

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as JSON has it."""
        named = {name: getattr(self, name)._asdict() for name in ("setting", "gain", "over_embedding")}
        trials = [{**setting._asdict(), "ndcg@10": score} for setting, score in self.trials]
        return asdict(self) | named | {"trials": trials, "sentences": self.sentences()}


def _told(found: Comparison) -> str:
    low, high = (100 * bound for bound in found.interval)
    p = f"p = {found.p:.4f}" if found.p >= 0.0001 else "p < 0.0001"
    return (
        f"nDCG@10 on held-out queries: {100 * found.difference:+.2f} points against the {found.against} "
        f"(95 % interval {low:+.2f} to {high:+.2f}, {p})"
    )


def tune(
    model: Any,
    queries: Sequence[str],
    documents: Sequence[Sequence[str]],
    grades: Sequence[Sequence[Grade]],
    *,
    first_stage_scores: Sequence[Sequence[float]] | None = None,
    ideal: Sequence[Iterable[Grade]] | None = None,
    index: TextVectors | None = None,
    seed: int = 0,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> Tuning:
    """Find out whether reranking is worth it on some queries, and with which settings.

    It tries both candidate orders, several K, and several shares of the query and of the first stage. Each document and
    each query is embedded once, and each order and K costs one prompt a query.

    Args:
        model: A model with ``rerank``.
        queries: B queries, 30 or more for a verdict.
        documents: The candidates of each query, in the order of the first stage, which is what reranking has to beat.
        grades: A grade for each candidate, higher is better; None for an unjudged one.
        first_stage_scores: A score for each candidate, greater is better. Without them, no mix is tried.
        ideal: Grades of all judged documents of each query, for the ideal ranking; by default ``grades``.
        index: The vectors of all candidates, by this model; by default they are embedded.
        seed: Seed of the folds and of the tests.
        batch_size: Texts in a forward pass.
        show_progress_bar: Whether to show progress bars; by default, the level of this module's logger decides.

    Raises:
        ValueError: There are fewer than two queries, lists differ in length, or a score is not finite; no candidate has
            a grade above 0.
        KeyError: A candidate is not in the index.
    """
    lists = JudgedLists(queries, documents, grades, grades if ideal is None else ideal, first_stage_scores)
    if len(lists.queries) < 2:
        raise ValueError(
            f"Got {len(lists.queries)} queries. Some choose the settings and the rest try them: give at least 2, and "
            f"{LEAST_QUERIES} for a verdict."
        )
    if not any((grade or 0) > 0 for row in lists.grades for grade in row):
        raise ValueError("No candidate of any query has a grade above 0, so all rankings are equal. Check the grades.")
    shown = progress_wanted(show_progress_bar, logger)
    if index is None:
        index = TextVectors.build(model, distinct(lists.documents), batch_size, shown)
    trials = run_trials(model, lists, index, batch_size=batch_size, show_progress_bar=shown)
    return judge(trials, seed=seed)


def judge(trials: Trials, *, seed: int = 0) -> Tuning:
    """Come to a verdict on the scores of all settings.

    The gain is real if its interval is above 0 and the test is significant. Reranking is not worth it if no setting
    beats the first stage, or if even the upper bound is below :data:`LEAST_GAIN`. Anything else cannot be told, and
    neither can fewer than :data:`LEAST_QUERIES` queries.

    Args:
        trials: Scores of at least two queries.
        seed: Seed of the folds and of the tests.
    """
    held_out, chosen = cross_validate(trials.scores, seed=seed)
    means = trials.scores.mean(axis=1)
    best = _best(means)
    per_query = {
        "first_stage": trials.of(FIRST_STAGE), "embedding": trials.of(trials.plain), "held_out": held_out.tolist()
    }  # fmt: skip
    named = {name: dict(zip(map(str, range(len(held_out))), values, strict=True)) for name, values in per_query.items()}
    gain, over_embedding = (
        compare(against, named["held_out"], named[key], seed=seed)._replace(
            p=chance(trials.scores - np.asarray(per_query[key]), seed=seed)
        )
        for against, key in (("first stage", "first_stage"), ("plain embedding", "embedding"))
    )
    verdict, needed = _verdict(trials.settings[best], gain, held_out - trials.scores[0])
    order = np.argsort(-means, kind="stable")
    return Tuning(
        verdict,
        trials.settings[best],
        len(held_out),
        gain,
        over_embedding,
        float(chosen[best] / chosen.sum()),
        needed,
        **{name: statistics.fmean(values) for name, values in per_query.items()},
        configured=None if trials.configured is None else statistics.fmean(trials.of(trials.configured)),
        trials=tuple((trials.settings[row], float(means[row])) for row in order),
        per_query=per_query,
        seed=seed,
    )


def _verdict(setting: Setting, gain: Comparison, gains: Scores) -> tuple[Verdict, int | None]:
    """The verdict, and where it cannot be told, about how many queries would tell."""
    low, high = gain.interval
    if len(gains) >= LEAST_QUERIES:
        if setting == FIRST_STAGE or high < LEAST_GAIN:
            return "do not rerank", None
        if low > 0 and gain.p < LEVEL:
            return "rerank", None
    # An interval is to leave out either no gain at all, or a gain that is worth it; the farther one is easier.
    distance = max(gain.difference, LEAST_GAIN - gain.difference)
    needed = math.ceil((STANDARD_ERRORS * float(gains.std(ddof=1)) / distance) ** 2)
    return "cannot be told", max(needed, LEAST_QUERIES)


def cross_validate(scores: Scores, *, seed: int = 0) -> tuple[Scores, Counts]:
    """Score each query by the setting that is best on the queries of other folds, over several random partitions.

    Args:
        scores: Score of each setting on each query, (S, B). Of equally good settings the first one is chosen.
        seed: Seed of the partitions.

    Returns:
        The mean held-out score of each query, (B,), and how often each setting was chosen, (S,).
    """
    number = scores.shape[1]
    held_out, chosen = np.zeros(number), np.zeros(len(scores), np.int64)
    total = scores.sum(axis=1)
    for fold in _folds(number, seed):
        best = _best((total - scores[:, fold].sum(axis=1)) / (number - len(fold)))
        held_out[fold] += scores[best, fold] / REPEATS
        chosen[best] += 1
    return held_out, chosen


def chance(differences: Scores, *, seed: int = 0) -> float:
    """Test whether the gain of :func:`cross_validate` is more than chance, by a randomisation test of all of it.

    What was held out in one fold has chosen in the others, so held-out scores depend on each other, and the usual test
    would find too much in noise. Here the settings are chosen again in each random sample: the sign of a query's
    differences, of all settings at once, is like a coin.

    Args:
        differences: Of each setting from the first stage, on each query, (S, B).
        seed: Seed of the partitions and of the signs.

    Returns:
        The two-sided p-value of the mean held-out gain.
    """
    number = differences.shape[1]
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(number, SAMPLES + 1))
    signs[:, 0] = 1  # as it is
    total, gains = differences @ signs, np.zeros(SAMPLES + 1)  # (S, samples)
    for fold in _folds(number, seed):
        part = differences[:, fold] @ signs[fold]
        best = np.argmax(((total - part) / (number - len(fold))).round(9), axis=0)
        gains += part[best, np.arange(SAMPLES + 1)]
    return float((np.abs(gains) >= abs(gains[0]) - 1e-9).mean())


def _folds(number: int, seed: int) -> Iterator[Counts]:
    """Yield the queries of each fold of each partition; few queries are left out one by one."""
    generator = np.random.default_rng(seed)
    for _ in range(REPEATS):
        yield from np.array_split(generator.permutation(number), min(FOLDS, number))


def _best(means: Scores) -> int:
    """The first of the best: sums in different orders differ in their last bits."""
    return int(np.argmax(means.round(9)))


def write_setting(folder: str | os.PathLike[str], setting: Setting) -> None:
    """Write a setting into the reranking configuration of a model folder, whole or not at all.

    Args:
        folder: A model that was saved, or an adapter that training wrote.
        setting: The setting.

    Raises:
        ValueError: The folder is not a model with listwise reranking, or its configuration does not allow the setting.
        OSError: A file cannot be read or written.
    """
    path = listwise_config(Path(folder))
    configuration = read_json(path) | setting.options()
    ListwiseRerank(**configuration)
    write_json(path, configuration)
