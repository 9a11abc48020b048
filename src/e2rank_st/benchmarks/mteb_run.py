"""MTEB tasks → a result file for each task and mode: scores and their settings.

Finished tasks are kept when the same options are given again. A task that fails is told with its error, and the others
still run. Results over local folders are marked local, those of a few queries partial: neither is an official score.
"""

from __future__ import annotations

import copy
import json
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mteb
from mteb.abstasks import AbsTask

from e2rank_st.benchmarks.models import Subject, listwise_configuration, load, state
from e2rank_st.benchmarks.mteb_model import MODES, E2RankMTEB, Mode
from e2rank_st.benchmarks.mteb_tasks import (
    find_tasks,
    leaves,
    limit_queries,
    one_level,
    private_cache,
    record_queries,
    searches,
    sources_of,
    use_folder,
)
from e2rank_st.benchmarks.results import Result, SystemResult
from e2rank_st.checkpoints import check_name
from e2rank_st.console import scrubbed
from e2rank_st.provenance import environment

__all__ = ["FAILED", "MODES", "Options", "Outcome", "metric_name", "plan", "run"]

logger = logging.getLogger(__name__)

FAILED = "failed"
TWO_STAGE_SETTINGS = ("first_stage_weight", "prompt_documents", "rerank_depth")  # the embedding does not depend on them
# Another value of one of these is another result; the size of a batch changes times only.
IDENTITY = ("task", "local", "partial", "models", "sources", "settings")


@dataclass(frozen=True)
class Options:
    """The options of ``e2rank eval mteb``, whose ``--help`` says what each means.

    Raises:
        ValueError: A name is unknown, or there is nothing to run.
    """

    model: str
    output_dir: Path
    tasks: Sequence[str] = ()
    benchmarks: Sequence[str] = ()
    modes: Sequence[Mode] = MODES
    name: str | None = None
    revision: str | None = None
    data_dir: Path | None = None
    limit: int | None = None
    prompt_documents: int | None = None
    rerank_depth: int = 100
    first_stage_weight: float | None = None
    batch_size: int = 32
    device: str | None = None
    dtype: str = "saved"
    vectors: Path | None = None
    overwrite: bool = False
    show_progress_bar: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        check_name(self.model)
        plan(self)


class Outcome(NamedTuple):
    """The end of one task in one mode: its score in points, or NaN and the error of a failed one.

    The state is ``done``, ``kept`` or ``failed``, and tells whether the result is local or partial.
    """

    task: str
    mode: str
    metric: str
    score: float
    seconds: float
    state: str
    error: str = ""


def plan(options: Options) -> list[tuple[AbsTask, list[Mode]]]:
    """The tasks, each with the modes that make a difference to it.

    Raises:
        ValueError: There are none.
    """
    if not options.tasks and not options.benchmarks:
        raise ValueError("Got no tasks; name tasks or benchmarks.")
    tasks = find_tasks(options.tasks, options.benchmarks)
    found = [(task, [mode for mode in options.modes if mode == MODES[0] or searches(task)]) for task in tasks]
    if not any(modes for _, modes in found):
        raise ValueError(f"None of the tasks searches; run them with the mode {MODES[0]}.")
    return found


def run(options: Options) -> Iterator[Outcome]:
    """Evaluate the tasks, one after the other.

    Yields:
        The outcome of each task and mode. Its result has been written already.

    Raises:
        OSError: The model cannot be loaded.
        ImportError: The weights are not installed and the Hub cannot be reached.
    """
    todo = plan(options)
    if alike := [task.metadata.name for task, modes in todo if not modes]:
        logger.warning("Left out, as they do not search: %s.", ", ".join(alike))
    subject = load(
        options.model, name=options.name, revision=options.revision, device=options.device, dtype=options.dtype
    )
    encoder = E2RankMTEB(
        subject.model,
        name=subject.name,
        revision=subject.revision,
        rerank_depth=options.rerank_depth,
        num_prompt_documents=options.prompt_documents,
        first_stage_weight=options.first_stage_weight,
        keep_vectors=True,
        vectors=options.vectors,
    )
    with private_cache() if options.data_dir else nullcontext():
        for task, modes in todo:
            yield from _Runner(options, subject, encoder).run(task, modes)


@dataclass(frozen=True)
class _Runner:
    """Evaluates a model on tasks, one at a time."""

    options: Options
    subject: Subject
    encoder: E2RankMTEB

    def run(self, task: AbsTask, modes: Sequence[Mode]) -> Iterator[Outcome]:
        """Evaluate a copy of a task in some modes."""
        task = copy.deepcopy(task)
        for mode in modes:
            try:
                if self.options.data_dir:
                    use_folder(task, self.options.data_dir)
                known = self._known(task, mode)
                kept = self._kept(self._path(task, mode), known)
                yield _outcome(kept or self._evaluate(task, mode, known), mode, "kept" if kept else "done")
            except Exception as error:  # whatever one of MTEB's tasks raises, the others still run
                logger.debug("the error in full", exc_info=True)
                message = scrubbed(" ".join(f"{type(error).__name__}: {error}".split()))
                yield Outcome(task.metadata.name, mode, "", float("nan"), 0.0, FAILED, message)
        for leaf in leaves(task):
            if leaf.data_loaded:
                leaf.unload_data()

    def _path(self, task: AbsTask, mode: Mode) -> Path:
        folder = self.subject.name.replace("/", "__")
        return self.options.output_dir / folder / f"{task.metadata.name}.{mode}.json"

    def _known(self, task: AbsTask, mode: Mode) -> dict[str, Any]:
        """The fields of a result that are known before it is measured."""
        settings = {
            "dtype": self.subject.describe()["dtype"],
            "first_stage_weight": self.encoder.first_stage_weight,
            "limit": self.options.limit,
            "max_tokens": self.subject.model.max_seq_length,
            "prompt_documents": self.encoder.num_prompt_documents,
            "rerank_depth": self.options.rerank_depth,
            "state": state(self.subject.model),  # --revision may give two of them one name
            "seed": task.seed,
        }
        if mode == MODES[0]:
            settings = {name: value for name, value in settings.items() if name not in TWO_STAGE_SETTINGS}
        return {
            "benchmark": "mteb",
            "task": task.metadata.name,
            "title": task.metadata.name,
            "main_metric": metric_name(task.metadata.main_score),
            "models": {"model": self.subject.describe()},
            "sources": sources_of(task),
            "settings": settings,
            "local": self.options.data_dir is not None,
            "partial": self.options.limit is not None,
        }

    def _kept(self, path: Path, known: dict[str, Any]) -> Result | None:
        """The result that is there already.

        Raises:
            ValueError: It is of another model or data, or of other settings.
        """
        if self.options.overwrite or not path.is_file():
            return None
        result = Result.read(path)
        if other := [name for name in IDENTITY if getattr(result, name) != known[name]]:
            raise ValueError(
                f"There is a result already, and it differs in {', '.join(other)}; "
                "choose another --output-dir, or replace it with --overwrite."
            )
        return result

    def _evaluate(self, task: AbsTask, mode: Mode, known: dict[str, Any]) -> Result:
        """Evaluate, and write the result."""
        start = time.perf_counter()
        self.encoder.set_mode(mode)
        if self.options.limit is not None:
            limit_queries(task, self.options.limit)
        for leaf in leaves(task):
            leaf.load_data()  # here, so that MTEB leaves it loaded for the other mode
        per_query = record_queries(task)
        # Without MTEB's own cache: it writes in place, and takes a local or partial result for an official one.
        encode: Any = {"batch_size": self.options.batch_size, "show_progress_bar": self.options.show_progress_bar}
        (found,) = mteb.evaluate(
            self.encoder, task, cache=None, co2_tracker=False, encode_kwargs=encode, show_progress_bar=False
        ).task_results
        written = json.loads(found.model_dump_json())  # as JSON has it: no NaN
        by_query = one_level(per_query)
        listwise = listwise_configuration(self.subject.model)
        listwise |= {
            "num_prompt_documents": self.encoder.num_prompt_documents,
            "first_stage_weight": self.encoder.first_stage_weight,
            "rerank_depth": self.options.rerank_depth,
        }
        system = SystemResult(
            kind="embedding" if mode == MODES[0] else "listwise",
            model="model",
            parameters={} if mode == MODES[0] else listwise,
            scores=_means(written["scores"]) | {known["main_metric"]: found.get_score()},
            per_query=by_query,
        )
        result = Result(
            **known,
            systems={mode: system},
            environment=environment(self.encoder.model.device),
            queries=len(by_query),
            seconds=round(time.perf_counter() - start, 3),
            mteb={"result": written},
        )
        result.write(self._path(task, mode))
        return result


def metric_name(name: str) -> str:
    """MTEB's name of a metric as ours: ``ndcg_at_10`` is ``ndcg@10``."""
    return name.replace("_at_", "@")


def _means(scores: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Each metric's mean over splits and subsets; without how well a score's height tells its quality (nAUC)."""
    parts = [part for split in scores.values() for part in split]
    names = [
        name
        for name, value in parts[0].items()
        if isinstance(value, float) and not name.startswith("nauc") and name != "main_score"
    ]
    return {
        metric_name(name): statistics.fmean(part[name] for part in parts)
        for name in names
        if all(name in part for part in parts)
    }


def _outcome(result: Result, mode: Mode, state: str) -> Outcome:
    marks = [state, *(mark for mark in ("local", "partial") if getattr(result, mark))]
    score = 100 * result.systems[mode].scores[result.main_metric]
    return Outcome(result.task, mode, result.main_metric, score, result.seconds, ", ".join(marks))
