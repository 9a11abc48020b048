"""Reranking as the paper measures it: a first stage's candidates, reranked by several systems side by side.

Systems: the first stage, the plain embedding, Rocchio feedback on the vectors, listwise reranking, and on request a
cross-encoder, listwise scores mixed with the first stage's (``fused``), and the same of a baseline model. Every
document is embedded once, and all systems of a model use those vectors. With ``own_first_stage`` each model reranks the
candidates that it retrieved itself; the first stage in the result is then the model's, not the baseline's.

With ``published`` everything is as in the paper's own evaluation, so that its figures can be compared. Documents are
other texts then, and the first stage is called ``{first stage}-published``.

A result is written as ``{task}-{first stage}.json``, whole or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from e2rank_st.benchmarks.candidates import Candidates
from e2rank_st.benchmarks.first_stages import (
    Files,
    locate,
    own_first_stage,
    read_excluded,
    read_files,
    read_over_collection,
)
from e2rank_st.benchmarks.instructions import instructed
from e2rank_st.benchmarks.measurement import Entrant, measure, results_of
from e2rank_st.benchmarks.models import Subject, load, load_cross_encoder
from e2rank_st.benchmarks.results import Result
from e2rank_st.benchmarks.systems import Embedding, FirstStage, Fused, Listwise, Pointwise, Rocchio, System
from e2rank_st.benchmarks.tasks import Task, find_tasks
from e2rank_st.checkpoints import check_name
from e2rank_st.data.trec import write_run
from e2rank_st.evaluation.metrics import MAIN
from e2rank_st.model import E2Rank
from e2rank_st.modeling_e2rank import num_positions
from e2rank_st.provenance import environment
from e2rank_st.search.texts import TextVectors
from e2rank_st.search.vectors import distinct

__all__ = ["VECTOR_SYSTEMS", "Failure", "Options", "chosen_tasks", "result_path", "run"]

REFERENCES = ("baseline_embedding", "embedding", "first_stage")  # the others are compared with the first that runs

VECTOR_SYSTEMS = ("embedding", "rocchio", "listwise", "fused")  # the last only on request: it needs a weight
# The paper's setting, with its K; the prompt's own instruction is the default one in the released checkpoints.
PUBLISHED = {"candidate_order": "given", "query_weight": 0.0, "instructions": "model"}
PUBLISHED_PROMPT_DOCUMENTS = 20
# No number depends on these, or the result has them elsewhere.
NOT_SETTINGS = {
    "tasks", "model", "baseline", "cross_encoder", "dtype", "data_dir", "output_dir", "runs_dir", "show_progress_bar",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The options of ``e2rank eval rerank``, whose ``--help`` says what each means.

    Raises:
        ValueError: A name is unknown, or the options do not name exactly one source of candidates.
    """

    tasks: Sequence[str] = ()
    first_stage: str = "bm25"
    data_dir: Path | None = None
    results: Path | None = None
    qrels: Path | None = None
    beir: Path | None = None
    split: str | None = None
    run: Path | None = None
    own_first_stage: bool = False
    top_n: int = 100
    limit: int | None = None
    judged_only: bool = False
    model: str = "bundled"
    baseline: str | None = None
    cross_encoder: str | None = None
    device: str | None = None
    dtype: str = "saved"
    batch_size: int = 32
    systems: Sequence[str] = VECTOR_SYSTEMS[:-1]
    num_prompt_documents: Sequence[int] = ()
    candidate_order: str | None = None
    query_weight: float | None = None
    first_stage_weight: float | None = None
    instructions: str | None = None
    published: bool = False
    embedding_queries: int = 10
    vectors: Path | None = None
    output_dir: Path = Path("results")
    runs_dir: Path | None = None
    show_progress_bar: bool = False

    def __post_init__(self) -> None:
        """Refuse what would fail later, or mean something else."""
        for model in (self.model, self.baseline, self.cross_encoder):
            if model is not None:
                check_name(model)
        chosen_tasks(self)
        if self.first_stage_weight is not None and Fused.kind not in self.systems:
            raise ValueError(f"A first-stage weight is for the system {Fused.kind}, which is not among the systems.")
        if self.published:
            self._as_published()
        elif self.instructions is None:
            object.__setattr__(self, "instructions", "task")

    def _as_published(self) -> None:
        """Fill in the paper's setting; K may differ, as in the paper's own study of it."""
        if self.own_first_stage:
            raise ValueError("The published setting reranks given candidates; leave the own first stage out.")
        for name, value in PUBLISHED.items():
            if (given := getattr(self, name)) not in (None, value):
                raise ValueError(f"The published setting has {name}={value!r}, got {given!r}; leave one of them out.")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "num_prompt_documents", self.num_prompt_documents or (PUBLISHED_PROMPT_DOCUMENTS,))
        object.__setattr__(self, "judged_only", True)  # its scores are those of the judged queries

    def settings(self) -> dict[str, Any]:
        """The options that decide the numbers; files by their names only."""
        values = {name: value for name, value in asdict(self).items() if name not in NOT_SETTINGS}
        if self.own_first_stage or self.results or self.beir:
            del values["first_stage"]  # a default that nothing read
        return {name: value.name if isinstance(value, Path) else value for name, value in values.items()}


def chosen_tasks(options: Options) -> list[Task]:
    """The tasks that the options name; files of the user's own are a task, too.

    Raises:
        ValueError: A task is unknown, or the options do not name exactly one source of candidates.
    """
    tasks = find_tasks(options.tasks)
    own = options.results or options.beir
    if options.results and options.beir:
        raise ValueError("Got results and a folder in BEIR's layout; give one source of candidates.")
    if bool(options.results) != bool(options.qrels):
        raise ValueError("Results and qrels belong together; give both.")
    if options.run and (not options.beir or options.own_first_stage):
        raise ValueError("A run needs texts from a folder in BEIR's layout, and no own first stage.")
    if options.beir and not options.run and not options.own_first_stage:
        raise ValueError("A folder in BEIR's layout has no candidates; give a run, or ask for an own first stage.")
    if options.own_first_stage and not options.beir and not options.data_dir:
        raise ValueError("An own first stage needs a corpus; give a folder in BEIR's layout, or a data folder.")
    if own and len(tasks) > 1:
        raise ValueError(f"Got files of one test set for {len(tasks)} tasks; name at most one.")
    if not own and not tasks:
        raise ValueError("Got nothing to evaluate on; name tasks, results or a folder in BEIR's layout.")
    name = own.resolve().name.split(".")[0] if own else ""
    return [_of_split(task, options.split) for task in tasks or [Task(name=name, title=name)]]


def _of_split(task: Task, split: str | None) -> Task:
    """The task on another split: under another name, since it is another task."""
    if split in (None, task.split):
        return task
    return replace(task, name=f"{task.name}-{split}", title=f"{task.title} {split}", split=split, sample=None)


class Failure(NamedTuple):
    """A task that could not be evaluated, and the reason."""

    task: str
    error: str


def run(options: Options) -> Iterator[Result | Failure]:
    """Evaluate the tasks, one after the other; a task that fails does not keep the others from running.

    Yields:
        The result of each task, which has been written already, or the reason why there is none.

    Raises:
        OSError: A model cannot be loaded.
        ImportError: The weights are not installed and the Hub cannot be reached.
    """
    subjects = _load(options)
    for task in chosen_tasks(options):
        try:
            yield _evaluate(options, task, subjects)
        except (ValueError, OSError, ImportError) as error:
            yield Failure(task.name, str(error))


def result_path(options: Options, result: Result) -> Path:
    """Return the file of a result."""
    return options.output_dir / f"{result.task}-{result.first_stage}.json"


def _load(options: Options) -> dict[str, Subject]:
    """Load the models by role: ``model`` and, where asked for, ``baseline`` and ``cross_encoder``."""
    names = {"model": options.model, "baseline": options.baseline}
    how: dict[str, Any] = {"device": options.device, "dtype": options.dtype, "vectors": options.vectors}
    found = {role: load(name, **how) for role, name in names.items() if name}
    for subject in found.values() if options.published else ():
        _lift_limits(subject.model)
    if options.cross_encoder:
        found["cross_encoder"] = load_cross_encoder(options.cross_encoder, options.device)
    return found


def _lift_limits(model: E2Rank) -> None:
    """Let texts and prompts have as many tokens as the model has positions; the paper's evaluation sets no limit."""
    if (positions := num_positions(model)) is not None:
        model.max_seq_length = positions
        model.replace_listwise(max_prompt_tokens=positions, max_query_tokens=positions)


def _evaluate(options: Options, task: Task, subjects: Mapping[str, Subject]) -> Result:
    """Evaluate all systems of the models on a task, and write the result."""
    start = time.perf_counter()
    systems = {role: _systems(options, task, role, subject.model) for role, subject in subjects.items()}
    names = {"first_stage", *(name for part in systems.values() for name in part)}
    compare_with = next(name for name in REFERENCES if name in names)
    instruction = task.retrieval_instruction if options.instructions == "task" else None
    with ExitStack() as stack:
        for role, subject in subjects.items():
            if role != "cross_encoder":
                stack.enter_context(instructed(subject.model, instruction))
        models = {role: subject.describe() for role, subject in subjects.items()}
        candidates, entrants = _enter(options, task, subjects, systems)
        measured = measure(
            entrants,
            embedding_queries=options.embedding_queries,
            batch_size=options.batch_size,
            show_progress_bar=options.show_progress_bar,
        )
    tests: Any = {"relevant_from": task.relevant_from, "compare_with": compare_with}
    result = Result(
        benchmark="reranking",
        task=task.name,
        title=task.title,
        main_metric=MAIN,
        models=models,
        sources=candidates.sources,
        systems=results_of(entrants, measured, candidates.judgements, **tests),
        settings=options.settings() | tests,
        environment=environment(subjects["model"].model.device),
        first_stage=candidates.first_stage,
        local=candidates.local,
        partial=candidates.partial,
        queries=len(candidates.cases),
        candidates=max(len(case.ids) for case in candidates.cases),
        seconds=round(time.perf_counter() - start, 1),
    )
    path = result_path(options, result)
    if options.runs_dir is not None:
        for name, found in measured.items():
            write_run(options.runs_dir / f"{path.stem}.{name}.trec", found.run, name)
    result.write(path)
    return result


def _systems(options: Options, task: Task, role: str, model: Any) -> dict[str, System]:
    """The systems of a model by name; with several K, a listwise one for each, named by it."""
    if role == "cross_encoder":
        return {"cross_encoder": Pointwise(model, options.batch_size)}
    has_place = "{instruction}" in model.listwise.format.template and options.instructions == "task"
    found: dict[str, System] = {"embedding": Embedding(model), "rocchio": Rocchio(model)}
    for count in options.num_prompt_documents or (None,):
        ending = "" if len(options.num_prompt_documents) < 2 else f"_k{count}"
        how: dict[str, Any] = {
            "num_prompt_documents": count,
            "candidate_order": options.candidate_order,
            "query_weight": options.query_weight,
            "instruction": task.listwise_instruction if has_place else None,
        }
        found[f"{Listwise.kind}{ending}"] = Listwise(model, **how)
        if Fused.kind in options.systems:
            found[f"{Fused.kind}{ending}"] = Fused(model, **how, first_stage_weight=options.first_stage_weight)
    prefix = "baseline_" if role == "baseline" else ""
    return {prefix + name: system for name, system in found.items() if system.kind in options.systems}


def _enter(
    options: Options, task: Task, subjects: Mapping[str, Subject], systems: Mapping[str, Mapping[str, System]]
) -> tuple[Candidates, list[Entrant]]:
    """Read the candidates, and give each model those that it ranks, with their vectors."""
    candidates, index = _candidates(options, task, subjects["model"])
    entrants = [Entrant("", None, {"first_stage": FirstStage()}, candidates.cases)]
    for role in [role for role in ("baseline", "model", "cross_encoder") if role in subjects]:
        subject, cases, stored = subjects[role], candidates.cases, index if role == "model" else None
        if role == "baseline" and options.own_first_stage:
            own, stored = _candidates(options, task, subject)
            cases = own.cases
        elif role != "cross_encoder" and stored is None:
            texts = distinct(case.documents for case in cases)
            stored = subject.embed(texts, options.batch_size, options.show_progress_bar)
        entrants.append(Entrant(role, subject.model, systems[role], cases, stored))
    return candidates, entrants


def _candidates(options: Options, task: Task, subject: Subject) -> tuple[Candidates, TextVectors | None]:
    """Candidates and judgements of a task; vectors where the model had to make them for it."""
    index, top_n = None, options.top_n
    excluded = read_excluded(task, options.data_dir)
    if options.own_first_stage:
        folder = options.beir or Path(options.data_dir or "", task.folder or task.name)
        bars: Any = {"batch_size": options.batch_size, "show_progress_bar": options.show_progress_bar}
        found, index = own_first_stage(subject, task, folder, top_n, excluded, **bars)
    elif options.beir and options.run:
        found = read_over_collection(options.beir, task.split, options.run, top_n, excluded)
    elif options.results and options.qrels:
        stage = options.results.name.split(".")[0] if options.tasks else "given"
        found = read_files(Files(options.results, options.qrels), stage, top_n, excluded)
    else:
        found = read_files(locate(task, options.first_stage, options.data_dir), options.first_stage, top_n, excluded)
    found = found.checked(judged_only=options.judged_only).limited(options.limit)
    return found.as_published() if options.published else found, index
