"""MTEB tasks → one JSON file a task and mode: scores, what they were measured with, and what a query cost.

    python eval/run_mteb.py --model bundled --benchmark "MTEB(eng, v2)" --mode embedding --output-dir results
    python eval/run_mteb.py --model org/e2rank --benchmark NanoBEIR --benchmark "BRIGHT(v1.1)" --output-dir results
    python eval/run_mteb.py --model bundled-base --tasks NFCorpus,SciFact --data-dir data --output-dir results
    python eval/run_mteb.py --model models/mine --tasks NFCorpus --limit 20 --output-dir /tmp/smoke

Finished tasks are kept when the same command is given again. A task that fails is reported with its error, the others
still run, and the exit status is 1. Results over local folders (--data-dir) are marked "local", those of a few queries
(--limit) "partial": neither is an official score.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

# Read when torch is first imported: threads that spin while they wait make a busy machine slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import datasets
import mteb
from mteb.abstasks import AbsTask
from tqdm.auto import tqdm

from e2rank_st.benchmarks.loading import BASE, BUNDLED, Subject, listwise_configuration, load, state
from e2rank_st.benchmarks.mteb_model import MODES, E2RankMTEB, Mode, SearchCost
from e2rank_st.benchmarks.mteb_tasks import (
    datasets_of,
    find_tasks,
    leaves,
    limit_queries,
    one_level,
    private_cache,
    record_queries,
    searches,
    use_folder,
)
from e2rank_st.console import Column, show
from e2rank_st.provenance import environment, scrubbed
from e2rank_st.storage import replacing

FORMAT = 1
FAILED = "failed"
PER_QUERY = "ndcg@10"
COLUMNS = (
    Column("task", share=1),
    Column("mode"),
    Column("metric"),
    Column("score", ".2f"),
    Column("seconds", ".0f"),
    Column("state"),
)
logger = logging.getLogger("run_mteb")


class Outcome(NamedTuple):
    """What became of one task in one mode; a failed one has no score but an error."""

    task: str
    mode: str
    metric: str
    score: float
    seconds: float
    state: str
    error: str = ""


@dataclass(frozen=True)
class Runner:
    """Evaluates one model on tasks, one at a time.

    Attributes:
        subject: The model.
        encoder: The same for MTEB.
        output_dir: Where results go: ``{organisation}__{name}/{task}.{mode}.json``.
        settings: What else a score depends on; the same in every result.
        data_dir: Local folders in the place of the Hub.
        limit: Queries a split.
        batch_size: Texts in a forward pass.
        overwrite: Whether to replace a result of other settings.
        show_progress_bar: Whether to show bars inside a task.
    """

    subject: Subject
    encoder: E2RankMTEB
    output_dir: Path
    settings: dict[str, Any]
    data_dir: Path | None = None
    limit: int | None = None
    batch_size: int = 32
    overwrite: bool = False
    show_progress_bar: bool = False

    def run(self, task: AbsTask, modes: Sequence[Mode]) -> Iterator[Outcome]:
        """Evaluate a task in some modes; what it raises becomes an outcome.

        Args:
            task: Not changed: all is done on a copy.
            modes: Those that make a difference to the task.
        """
        task = copy.deepcopy(task)
        for mode in modes:
            try:
                if self.data_dir:
                    use_folder(task, self.data_dir)
                kept = self._kept(task, mode)
                yield _outcome(kept or self._evaluate(task, mode), "kept" if kept else "done")
            except Exception as error:  # whatever one of MTEB's tasks raises, the others still run
                logger.debug("the error in full", exc_info=True)
                message = scrubbed(" ".join(f"{type(error).__name__}: {error}".split()))
                yield Outcome(task.metadata.name, mode, "", float("nan"), 0.0, FAILED, message)
        for leaf in leaves(task):
            if leaf.data_loaded:
                leaf.unload_data()

    def _path(self, task: AbsTask, mode: Mode) -> Path:
        return self.output_dir / self.subject.name.replace("/", "__") / f"{task.metadata.name}.{mode}.json"

    def _identity(self, task: AbsTask, mode: Mode) -> dict[str, Any]:
        """What a result is of: another identity is another result."""
        return {
            "benchmark": "mteb",
            "format": FORMAT,
            "task": task.metadata.name,
            "mode": mode,
            "local": self.data_dir is not None,
            "partial": self.limit is not None,
            "model": {"name": self.subject.name, "revision": self.subject.revision},
            "datasets": datasets_of(task),
            "settings": {
                name: value
                for name, value in self.settings.items()
                if mode == "two-stage" or name not in ("prompt_documents", "rerank_depth")
            },
        }

    def _kept(self, task: AbsTask, mode: Mode) -> dict[str, Any] | None:
        """The result that is there already, if it is of the same identity.

        Raises:
            ValueError: It is of another one.
        """
        path, wanted = self._path(task, mode), self._identity(task, mode)
        if self.overwrite or not path.is_file():
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name, value in wanted.items() if record.get(name) != value]
        if other:
            raise ValueError(
                f"There is a result already, and it differs in {', '.join(other)}; "
                "choose another --output-dir, or replace it with --overwrite."
            )
        return record

    def _evaluate(self, task: AbsTask, mode: Mode) -> dict[str, Any]:
        """Evaluate, and write the result."""
        started, start = datetime.now(timezone.utc), time.perf_counter()
        identity = self._identity(task, mode)
        self.encoder.set_mode(mode)
        self.encoder.costs.clear()
        if self.limit is not None:
            limit_queries(task, self.limit)
        for leaf in leaves(task):
            leaf.load_data()  # here, so that MTEB leaves it loaded for the other mode
        per_query = record_queries(task)
        # Without MTEB's own cache: it writes in place, and takes a local or partial result for an official one.
        options: Any = {"batch_size": self.batch_size, "show_progress_bar": self.show_progress_bar}
        results = mteb.evaluate(
            self.encoder, task, cache=None, co2_tracker=False, encode_kwargs=options, show_progress_bar=False
        )
        result = json.loads(results.task_results[0].model_dump_json())  # as JSON has it: no NaN
        record = {
            **identity,
            "type": task.metadata.type,
            "main_metric": task.metadata.main_score,
            "main_score": results.task_results[0].get_score(),
            "scores": _means(result["scores"]),
            "seed": task.seed,
            "batch_size": self.batch_size,
            "prompts": dict(self.subject.model.prompts),
            "listwise": listwise_configuration(self.subject.model) if mode == "two-stage" else None,
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - start, 3),
            "hardware": environment(self.encoder.model.device)["hardware"]["device"],
            "versions": environment()["versions"],
            "cost": [_cost(cost) for cost in self.encoder.costs],
            "per_query": {PER_QUERY: one_level(per_query)} if per_query else {},
            "result": result,
        }
        with replacing(self._path(task, mode)) as fresh:
            fresh.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return record


def _means(scores: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Each metric's mean over splits and subsets; without how well a score's height tells its quality (nAUC)."""
    parts = [part for split in scores.values() for part in split]
    names = [name for name, value in parts[0].items() if isinstance(value, float) and not name.startswith("nauc")]
    return {
        name: statistics.fmean(part[name] for part in parts) for name in names if all(name in part for part in parts)
    }


def _cost(cost: SearchCost) -> dict[str, Any]:
    """The cost of a search, and of one of its queries."""
    stages = (cost.retrieval, cost.reranking)
    return {
        **asdict(cost),
        "per_query": {
            "texts": round(sum(stage.texts for stage in stages) / cost.queries, 3),
            "query_tokens": round(cost.retrieval.tokens / cost.queries, 1),
            "prompt_tokens": round(cost.reranking.tokens / cost.queries, 1),
            "seconds": round(sum(stage.seconds for stage in stages) / cost.queries, 5),
        },
    }


def _outcome(record: dict[str, Any], state: str) -> Outcome:
    marks = [state, *(mark for mark in ("local", "partial") if record[mark])]
    place = (record["task"], record["mode"], record["main_metric"])
    return Outcome(*place, 100 * record["main_score"], record["seconds"], ", ".join(marks))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, refusing what cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help=f"folder, Hub id, {BUNDLED!r}, or {BASE!r}: what that one was trained from")
    add("--name", help="what results call it, organisation/name (default: the Hub id, or local/FOLDER)")
    add("--revision", help="commit of a Hub repository; for a folder, what results call its state")
    add("--tasks", default="", help="names, with commas between them")
    add(
        "--benchmark", action="append", default=[], help="a set of tasks, as MTEB calls it; may be given more than once"
    )
    add("--mode", default=",".join(MODES), help=f"of {', '.join(MODES)} (default: both, where they differ)")
    add("--output-dir", type=Path, required=True, help="where results go, and finished ones are looked for")
    add("--data-dir", type=Path, help="local folders in the place of the Hub; results are marked local")
    add("--limit", type=int, help="queries of each split, for a smoke run; results are marked partial")
    add("--prompt-documents", type=int, help="K, documents in a listwise prompt (default: the model's)")
    add("--rerank-depth", type=int, default=100, help="documents of a query to rerank (default: 100)")
    add("--batch-size", type=int, default=32, help="texts in a forward pass (default: 32)")
    add("--device", help="cpu, cuda, ... (default: the best there is)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(default: float32)")
    add("--overwrite", action="store_true", help="replace results that are there, whatever they are of")
    add("--verbose", action="store_true", help="say more, with the traceback of an error")
    options = parser.parse_args(arguments)
    options.tasks = [name.strip() for name in options.tasks.split(",") if name.strip()]
    options.mode = list(dict.fromkeys(mode.strip() for mode in options.mode.split(",")))
    if not options.tasks and not options.benchmark:
        parser.error("got no tasks; name some with --tasks or --benchmark")
    if unknown := [mode for mode in options.mode if mode not in MODES]:
        parser.error(f"--mode has {unknown[0]!r}; allowed are {', '.join(MODES)}")
    for name in ("limit", "prompt_documents", "rerank_depth", "batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if options.data_dir and not options.data_dir.is_dir():
        parser.error(f"--data-dir {options.data_dir} is no folder")
    return options


def prepare(options: argparse.Namespace) -> Runner:
    """Load the model.

    Raises:
        ValueError: The model or a setting is not one that can be evaluated.
        OSError: The model cannot be loaded.
    """
    subject = load(
        options.model,
        name=options.name,
        revision=options.revision,
        device=options.device,
        model_kwargs={"dtype": options.dtype},
    )
    encoder = E2RankMTEB(
        subject.model,
        name=subject.name,
        revision=subject.revision,
        rerank_depth=options.rerank_depth,
        num_prompt_documents=options.prompt_documents,
        keep_vectors=True,
    )
    settings = {
        "dtype": options.dtype,
        "limit": options.limit,
        "max_tokens": subject.model.max_seq_length,
        "prompt_documents": encoder.num_prompt_documents,
        "rerank_depth": encoder.rerank_depth,
        "state": state(subject.model),  # --revision may give two of them one name
    }
    shared = {name: getattr(options, name) for name in ("output_dir", "data_dir", "limit", "batch_size", "overwrite")}
    return Runner(subject, encoder, settings=settings, show_progress_bar=sys.stderr.isatty(), **shared)


class _Scrubbing(logging.StreamHandler[Any]):
    """Messages of all libraries, without tokens and paths."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


def _run(runner: Runner, plan: Sequence[tuple[AbsTask, list[Mode]]]) -> list[Outcome]:
    """Run the tasks, telling of each."""
    outcomes: list[Outcome] = []
    with tqdm(total=sum(len(modes) for _, modes in plan), desc="tasks", disable=None) as progress:
        for task, modes in plan:
            progress.set_description(task.metadata.name)
            for outcome in runner.run(task, modes):
                outcomes.append(outcome)
                said = outcome.error or f"{outcome.score:.2f}"
                progress.write(f"{outcome.task} {outcome.mode}: {outcome.state}: {said}", file=sys.stderr)
                progress.update()
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tasks; 1 if one failed, 2 if nothing could be run."""
    options = parse(arguments)
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.WARNING, handlers=[_Scrubbing()])
    logging.captureWarnings(True)
    logging.getLogger("huggingface_hub").handlers.clear()  # its own says everything a second time, and not scrubbed
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        tasks = find_tasks(options.tasks, options.benchmark)
        runner = prepare(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"run_mteb: error: {scrubbed(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    plan = [(task, [mode for mode in options.mode if mode == MODES[0] or searches(task)]) for task in tasks]
    if alike := [task.metadata.name for task, modes in plan if not modes]:
        print(f"run_mteb: left out, as they do not search: {', '.join(alike)}", file=sys.stderr)
    if len(alike) == len(plan):
        return 2
    with private_cache() if options.data_dir else nullcontext():
        outcomes = _run(runner, plan)
    show(
        COLUMNS,
        [outcome[: len(COLUMNS)] for outcome in outcomes],
        title=f"{runner.subject.name} {runner.subject.revision}",
    )
    return int(any(outcome.state == FAILED for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
