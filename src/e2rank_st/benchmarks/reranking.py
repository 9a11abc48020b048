"""Reranking as the paper measures it: a first stage's candidates, reranked by several systems side by side.

Systems: the first stage, the plain embedding, Rocchio feedback on the vectors, listwise reranking, and where asked for
a cross-encoder and the same three of a baseline model. Every document is embedded once, and all systems of a model use
those vectors. With --own-first-stage each model reranks what it retrieved itself, and the first stage shown is the
model's, not the baseline's.

Written to --output-dir, each file whole or not at all: {task}-{first stage}.json with settings, scores by query,
intervals, comparisons, latency, tokens, versions and hardware, and runs/ with a TREC run a system, with real scores.
Results on local files are marked "local", those on some of the queries "partial".
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads starve a busy machine

from transformers.utils.logging import disable_progress_bar

from e2rank_st.benchmarks.candidates import (
    Candidates,
    Case,
    Files,
    locate,
    own_first_stage,
    read_excluded,
    read_files,
    read_over_collection,
)
from e2rank_st.benchmarks.encoders import instructed, load_cross_encoder, load_encoder
from e2rank_st.benchmarks.measurement import Measured, measure, record
from e2rank_st.benchmarks.options import parser
from e2rank_st.benchmarks.systems import Embedding, FirstStage, Listwise, Pointwise, Rocchio, System, Vectors
from e2rank_st.benchmarks.tasks import Task, find_tasks
from e2rank_st.console import Column, show
from e2rank_st.data.trec import write_run
from e2rank_st.evaluation.metrics import MAIN
from e2rank_st.model import E2Rank
from e2rank_st.provenance import environment
from e2rank_st.storage import replacing

FORMAT = 1
COLUMNS = (  # of texts, since some systems have no value in some of them
    Column("system", share=1),
    Column(MAIN, ">", style="green"),
    Column("95 %", ">"),
    Column("difference", ">"),
    Column("p", ">"),
    Column("wins/ties/losses", ">"),
    Column("ms", ">"),
    Column("p95", ">"),
    Column("ms, no store", ">"),
    Column("tokens", ">"),
)


def chosen_tasks(arguments: argparse.Namespace) -> list[Task]:
    """The tasks that the command line asks for; files of the user's own are a task, too.

    Raises:
        ValueError: A task is unknown, or the options do not name exactly one source of data.
    """
    tasks = find_tasks(arguments.tasks)
    own = arguments.results or arguments.beir
    if arguments.results and arguments.beir:
        raise ValueError("Got --results and --beir; give one source of candidates.")
    if bool(arguments.results) != bool(arguments.qrels):
        raise ValueError("--results and --qrels belong together; give both.")
    if arguments.run and (not arguments.beir or arguments.own_first_stage):
        raise ValueError("--run needs the texts of --beir, and no --own-first-stage.")
    if arguments.beir and not arguments.run and not arguments.own_first_stage:
        raise ValueError("--beir has no candidates; give a --run, or --own-first-stage.")
    if arguments.own_first_stage and not arguments.beir and not arguments.data_dir:
        raise ValueError("--own-first-stage needs a corpus: give --beir, or --data-dir with the folders of the tasks.")
    if own and len(tasks) > 1:
        raise ValueError(f"Got files of one test set for {len(tasks)} tasks; name at most one.")
    if not own and not tasks:
        raise ValueError("Got nothing to evaluate on; give --tasks, --results or --beir.")
    name = own.resolve().name.split(".")[0] if own else ""
    return [_of_split(task, arguments.split) for task in tasks or [Task(name=name, title=name)]]


def _of_split(task: Task, split: str | None) -> Task:
    """The task on another split: under another name, since it is no result of the task's own."""
    if split in (None, task.split):
        return task
    return replace(task, name=f"{task.name}-{split}", title=f"{task.title} {split}", split=split, sample=None)


def load_models(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The models by what they are here (``model``, ``baseline``, ``cross_encoder``), and what a result says of them.

    Raises:
        ValueError: A name is no model's.
        OSError: A model cannot be loaded.
        ImportError: The weights are not installed and the Hub cannot be reached.
    """
    loaded: dict[str, Any] = {"model": load_encoder(arguments.model, arguments.device, arguments.dtype)}
    if arguments.baseline:
        loaded["baseline"] = load_encoder(arguments.baseline, arguments.device, arguments.dtype)
    if arguments.cross_encoder:
        loaded["cross_encoder"] = load_cross_encoder(arguments.cross_encoder, arguments.device)
    return {role: pair[0] for role, pair in loaded.items()}, {role: pair[1] for role, pair in loaded.items()}


def read_candidates(arguments: argparse.Namespace, task: Task, model: E2Rank) -> tuple[Candidates, Vectors | None]:
    """Read candidates and judgements of a task; vectors where the model had to make them for it.

    Raises:
        ValueError: A file is wrong, or files do not fit together.
        OSError: A file cannot be read.
    """
    vectors, top_n = None, arguments.top_n
    excluded = read_excluded(task, arguments.data_dir)
    if arguments.own_first_stage:
        folder = arguments.beir or arguments.data_dir / (task.folder or task.name)
        options: Any = {"batch_size": arguments.batch_size, "show_progress_bar": sys.stderr.isatty()}
        options |= {"sample": task.sample, "judged_groups": task.judged_groups}
        candidates, vectors = own_first_stage(model, folder, task.split, top_n, excluded, **options)
    elif arguments.beir:
        candidates = read_over_collection(arguments.beir, task.split, arguments.run, top_n, excluded)
    elif arguments.results:
        stage = arguments.results.name.split(".")[0] if arguments.tasks else "given"
        candidates = read_files(Files(arguments.results, arguments.qrels), stage, top_n, excluded)
    else:
        files = locate(task, arguments.first_stage, arguments.data_dir)
        candidates = read_files(files, arguments.first_stage, top_n, excluded)
    return candidates.checked(judged_only=arguments.judged_only).limited(arguments.limit), vectors


def make_systems(arguments: argparse.Namespace, models: dict[str, Any], task: Task) -> dict[str, System]:
    """The systems by name; those of the baseline are called ``baseline_...``.

    Args:
        arguments: The command line.
        models: ``model`` and, where asked for, ``baseline`` and ``cross_encoder``.
        task: Whose instruction the listwise prompt gets.
    """
    found: dict[str, System] = {"first_stage": FirstStage()}
    for role, prefix in (("baseline", "baseline_"), ("model", "")):
        if role in models:
            systems = _vector_systems(arguments, models[role], task)
            found |= {prefix + name: system for name, system in systems.items() if system.kind in arguments.systems}
    if "cross_encoder" in models:
        found["cross_encoder"] = Pointwise(models["cross_encoder"], arguments.batch_size)
    return found


def _vector_systems(arguments: argparse.Namespace, model: E2Rank, task: Task) -> dict[str, System]:
    """The systems of one model; with several K, a listwise one for each, named by it."""
    has_place = "{instruction}" in model.listwise.format.template and arguments.instructions == "task"
    counts: list[int | None] = arguments.num_prompt_documents or [None]
    found: dict[str, System] = {
        "embedding": Embedding(model),
        "rocchio": Rocchio(model, arguments.rocchio_documents, arguments.rocchio_weight),
    }
    for count in counts:
        found["listwise" if len(counts) == 1 else f"listwise_k{count}"] = Listwise(
            model,
            num_prompt_documents=count,
            candidate_order=arguments.candidate_order,
            passes=arguments.passes,
            query_weight=arguments.query_weight,
            instruction=task.listwise_instruction if has_place else None,
        )
    return found


class Evaluation:
    """The systems of some models, measured on a task.

    Args:
        arguments: The command line.
        task: The task.
        models: ``model`` and, where asked for, ``baseline`` and ``cross_encoder``.
        descriptions: What the result says of each.

    Raises:
        ValueError: The data or an option is wrong.
        OSError: A file cannot be read.
        ImportError: A package is missing.
    """

    def __init__(
        self, arguments: argparse.Namespace, task: Task, models: dict[str, Any], descriptions: dict[str, dict[str, Any]]
    ) -> None:
        start = time.perf_counter()
        self.arguments, self.task, self.models, self.descriptions = arguments, task, models, descriptions
        self.systems = make_systems(arguments, models, task)
        self.compare_with = self._compare_with()
        self.prompts: dict[str, str] = {}  # of the queries, by model
        with ExitStack() as stack:
            for role, model in self._encoders.items():
                instruction = task.retrieval_instruction if arguments.instructions == "task" else None
                self.prompts[role] = stack.enter_context(instructed(model, instruction))
            self.candidates, known = read_candidates(arguments, task, models["model"])
            self.measured = self._measure({id(models["model"]): known} if known else {})
        self.rows = record(
            self.systems,
            self.measured,
            self.candidates,
            relevant_from=task.relevant_from,
            compare_with=self.compare_with,
            seed=arguments.seed,
        )
        self.stem = f"{task.name}-{self.candidates.first_stage}"
        for name, row in self.rows.items():
            row["run"] = f"runs/{self.stem}.{name}.trec"
        self.seconds = time.perf_counter() - start

    @property
    def _encoders(self) -> dict[str, E2Rank]:
        return {role: model for role, model in self.models.items() if role != "cross_encoder"}

    def _compare_with(self) -> str:
        preferred = ("baseline_embedding", "embedding", "first_stage")
        chosen = self.arguments.compare_with or next(name for name in preferred if name in self.systems)
        if chosen not in self.systems:
            raise ValueError(f"Got --compare-with {chosen}, which is none of {', '.join(self.systems)}.")
        return str(chosen)

    def _measure(self, vectors: dict[int, Vectors]) -> dict[str, Measured]:
        """Rank by all systems; documents that have no vectors yet are embedded, and a first stage of its own is run."""
        cases = self.candidates.cases
        own: dict[int, tuple[Case, ...]] = {}
        options: Any = {"batch_size": self.arguments.batch_size, "show_progress_bar": sys.stderr.isatty()}
        for model in self._encoders.values():
            if id(model) in vectors:
                continue
            if self.arguments.own_first_stage:
                found, known = read_candidates(self.arguments, self.task, model)
                assert known is not None
                own[id(model)], vectors[id(model)] = found.cases, known
            else:
                vectors[id(model)] = Vectors.embed(model, cases, **options)
        queries = self.arguments.embedding_queries
        return measure(self.systems, cases, vectors, own=own, embedding_queries=queries, **options)

    def result(self) -> dict[str, Any]:
        """The content of the result file."""
        return {
            "format": FORMAT,
            "benchmark": "reranking",
            "task": self.task.name,
            "title": self.task.title,
            "first_stage": self.candidates.first_stage,
            "local": self.candidates.local,
            "partial": self.candidates.partial,
            "queries": len(self.candidates.cases),
            "candidates": max(len(case.ids) for case in self.candidates.cases),
            "relevant_from": self.task.relevant_from,
            "main_metric": MAIN,
            "compare_with": self.compare_with,
            "models": self.descriptions,
            "query_prompts": self.prompts,
            "settings": _settings(self.arguments),
            "sources": self.candidates.sources,
            "systems": self.rows,
            "seconds": round(self.seconds, 1),
            "environment": _environment(),
        }

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the runs and then the result file, each whole or not at all.

        Returns:
            The content of the result file.

        Raises:
            ValueError: An id cannot stand in a run.
            OSError: A file cannot be written.
        """
        for name, found in self.measured.items():
            write_run(folder / self.rows[name]["run"], found.run, name)
        result = self.result()
        with replacing(folder / f"{self.stem}.json") as fresh:
            fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return result


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides the numbers, of the command line; files by their names only."""
    left_out = {"model", "baseline", "cross_encoder", "output_dir", "data_dir", "tasks"}
    values = {name: value for name, value in vars(arguments).items() if name not in left_out}
    if arguments.own_first_stage or arguments.results or arguments.beir:
        del values["first_stage"]  # a default that nothing read
    return {name: value.name if isinstance(value, Path) else value for name, value in values.items()}


def _environment() -> dict[str, Any]:
    found = environment()
    return found | {
        "versions": found["versions"] | {"pytrec-eval-terrier": importlib.metadata.version("pytrec-eval-terrier")}
    }


def show_result(result: dict[str, Any]) -> None:
    """Print a table of the systems."""
    marks = [mark for mark in ("local", "partial") if result[mark]]
    title = f"{result['title']}, {result['first_stage']} top {result['candidates']}, {result['queries']} queries"
    title += f", compared with {result['compare_with']}"
    rows = [(name, *_cells(row)) for name, row in result["systems"].items()]
    show(COLUMNS, rows, title=" · ".join([title, *marks]))


def _cells(row: dict[str, Any]) -> Iterator[str]:
    """What the table says of a system, in the order of its columns."""
    low, high = (100 * bound for bound in row["interval"])
    yield f"{100 * row['scores'][MAIN]:.2f}"
    yield f"{low:.1f} to {high:.1f}"
    found = row.get("comparison")
    yield f"{100 * found['difference']:+.2f}" if found else ""
    yield f"{found['p']:.4f}" if found else ""
    yield f"{found['wins']}/{found['ties']}/{found['losses']}" if found else ""
    stored, fresh = (row["latency"][kind] for kind in ("stored", "fresh"))
    yield f"{stored['median']:.1f}" if stored else ""
    yield f"{stored['p95']:.1f}" if stored else ""
    yield f"{fresh['median']:.0f}" if fresh else ""
    yield f"{row['tokens']['median']:.0f}" if row["tokens"] else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; a task that fails is reported, and the others still run.

    Returns:
        The exit status: 1 if a task failed.
    """
    command = parser(__doc__)
    arguments = command.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if not sys.stderr.isatty():
        disable_progress_bar()
    try:
        tasks = chosen_tasks(arguments)
        models, descriptions = load_models(arguments)
    except (ValueError, OSError, ImportError) as error:
        command.error(str(error))
    failed = 0
    for task in tasks:
        try:
            show_result(Evaluation(arguments, task, models, descriptions).write(arguments.output_dir))
        except (ValueError, OSError, ImportError) as error:
            failed += 1
            print(f"{task.name}: error: {error}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(tasks)} tasks failed.", file=sys.stderr)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
