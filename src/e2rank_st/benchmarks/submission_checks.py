"""Results by MTEB → the reasons not to submit them to its leaderboard."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mteb.abstasks import AbsTask
from mteb.results import TaskResult
from pydantic import ValidationError

from e2rank_st.benchmarks.mteb_search import MODES
from e2rank_st.benchmarks.mteb_tasks import find_tasks, searches, sources_of
from e2rank_st.benchmarks.results import Result

__all__ = ["Refused", "check", "experiment_of", "mode_of", "written_by_mteb"]

COMMIT = re.compile(r"[0-9a-f]{40}")
EMBEDDING, TWO_STAGE = MODES
EXPERIMENT = ("prompt_documents", "rerank_depth")


class Refused(ValueError):
    """Results that must not be submitted.

    Args:
        problems: A line for each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join((f"Nothing was written, for {len(problems)} reasons:", *problems)))
        self.problems = list(problems)


def check(results: Sequence[Result], revision: str, benchmarks: Sequence[str]) -> None:
    """Check that results may be submitted.

    Args:
        results: Of one model.
        revision: The commit of the model on the Hub that they have to be of.
        benchmarks: Sets of tasks that have to be complete.

    Raises:
        Refused: They may not; the message has a line for each reason.
        ValueError: MTEB has no such task or benchmark.
    """
    tasks = {task.metadata.name: task for task in find_tasks([result.task for result in results], [])}
    problems = []
    if not COMMIT.fullmatch(revision):
        problems.append(f"revision {revision!r} is not a commit of a Hub repository (40 digits)")
    for result in results:
        place = f"{result.task}, {mode_of(result)}"
        problems += [f"{place}: {problem}" for problem in _problems(result, revision, tasks[result.task])]
    for benchmark in benchmarks:
        problems += _gaps(results, benchmark)
    if problems:
        raise Refused(problems)


def mode_of(result: Result) -> str:
    """The mode of a result: its only system."""
    return next(iter(result.systems))


def written_by_mteb(result: Result) -> dict[str, Any]:
    """A result as MTEB wrote it."""
    return dict((result.mteb or {})["result"])


def _problems(result: Result, revision: str, task: AbsTask) -> Iterator[str]:
    """The reasons not to submit a result."""
    if result.local:
        yield "measured on a local copy of the data; run it without --data-dir"
    if result.partial:
        yield "measured on a part of the queries; run it without --limit"
    if (found := result.models["model"]["revision"]) != revision:
        yield f"of revision {found}, not {revision}; run it with that --revision"
    if result.sources != sources_of(task):
        yield f"data {result.sources}, where the installed MTEB has {sources_of(task)}; run it anew"
    try:
        written = TaskResult.from_dict(written_by_mteb(result))
    except ValidationError as error:
        yield f"not a result of MTEB ({error.error_count()} errors, the first: {error.errors()[0]['msg']})"
        return
    missing = [split for split in task.eval_splits if split not in written.scores]
    if not task.is_aggregate:  # an aggregate has one subset, whatever its tasks have
        missing = [
            f"{split}/{part}" for split, parts in written.get_missing_evaluations(task).items() for part in parts
        ]
    if missing:
        yield f"no scores for {', '.join(missing)}; run it anew"
    scores = [part["main_score"] for parts in written.scores.values() for part in parts]
    if any(score is None or not math.isfinite(score) for score in scores):
        yield "a score is missing or not a number; run it anew"


def _gaps(results: Sequence[Result], benchmark: str) -> Iterator[str]:
    """Tasks of a benchmark without a result: of the plain embedding, and of the other settings that were run."""
    tasks = find_tasks([], [benchmark])
    done: dict[str, set[str]] = {json.dumps({}): set()}
    for result in results:
        done.setdefault(json.dumps(experiment_of(result)), set()).add(result.task)
    for key, names in done.items():
        two_stage = json.loads(key).get("mode") == TWO_STAGE
        wanted = [task.metadata.name for task in tasks if searches(task) or not two_stage]
        if missing := [name for name in wanted if name not in names]:
            what = "the plain embedding" if key == json.dumps({}) else key
            yield f"{benchmark}, {what}: no result of {', '.join(missing)}; run them, or leave the benchmark out"


def experiment_of(result: Result) -> dict[str, Any]:
    """The difference from the leaderboard's main result, the plain embedding in float32."""
    found: dict[str, Any] = {}
    if (mode := mode_of(result)) != EMBEDDING:
        found = {"mode": mode, **{name: result.settings[name] for name in EXPERIMENT}}
    if result.settings["dtype"] != "float32":
        found["dtype"] = result.settings["dtype"]
    return found
