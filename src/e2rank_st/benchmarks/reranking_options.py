"""Options of an evaluation of reranking, checked, and the tasks that they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from e2rank_st.benchmarks.models import BUNDLED
from e2rank_st.benchmarks.tasks import Task, find_tasks
from e2rank_st.model import check_name

__all__ = ["VECTOR_SYSTEMS", "Options", "chosen_tasks"]

VECTOR_SYSTEMS = ("embedding", "rocchio", "listwise")
# No number depends on these, or the result has them elsewhere.
NOT_SETTINGS = {
    "tasks", "model", "baseline", "cross_encoder", "data_dir", "output_dir", "runs_dir", "show_progress_bar",
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
    model: str = BUNDLED
    baseline: str | None = None
    cross_encoder: str | None = None
    device: str | None = None
    dtype: str = "float32"
    batch_size: int = 32
    systems: Sequence[str] = VECTOR_SYSTEMS
    num_prompt_documents: Sequence[int] = ()
    instructions: str = "task"
    embedding_queries: int = 10
    output_dir: Path = Path("results")
    runs_dir: Path | None = None
    show_progress_bar: bool = False

    def __post_init__(self) -> None:
        """Refuse what would fail later, or mean something else."""
        for model in (self.model, self.baseline, self.cross_encoder):
            if model is not None:
                check_name(model)
        chosen_tasks(self)

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
