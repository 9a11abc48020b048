"""Names of tasks and benchmarks → MTEB's own tasks, perhaps over local folders or with a few queries.

MTEB's result holds means. Significance tests need the score of each query; a hook of the task itself is handed those.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import datasets
import mteb
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from e2rank_st.storage import folder_sha256

__all__ = [
    "PerQuery",
    "find_tasks",
    "leaves",
    "limit_queries",
    "one_level",
    "private_cache",
    "record_queries",
    "searches",
    "sources_of",
    "use_folder",
]

PerQuery: TypeAlias = dict[str, dict[str, float]]  # "task/subset/split" → query id → nDCG@10
REVISION = "local"


def find_tasks(names: Iterable[str], benchmarks: Iterable[str]) -> list[AbsTask]:
    """The tasks with these names of MTEB's and those of these benchmarks, each once, in this order.

    Raises:
        ValueError: There is none of a name; the message has the nearest one.
    """
    found: dict[str, AbsTask] = {}
    try:
        for name in names:
            found.setdefault(name, mteb.get_task(name))
        for name in benchmarks:
            for task in mteb.get_benchmark(name).tasks:
                found.setdefault(task.metadata.name, copy.deepcopy(task))
    except KeyError as error:
        raise ValueError(f"MTEB has no {name!r}: {error.args[0]}") from error
    return list(found.values())


def leaves(task: AbsTask) -> list[AbsTask]:
    """The tasks with data that a task consists of: itself, but for an aggregate."""
    return list(task.metadata.tasks) if isinstance(task, AbsTaskAggregate) else [task]


def searches(task: AbsTask) -> bool:
    """Whether a task searches, so that its result depends on the mode."""
    return all(isinstance(leaf, AbsTaskRetrieval) for leaf in leaves(task))


def sources_of(task: AbsTask) -> dict[str, str]:
    """The data that a task is evaluated on: for each of its leaves, the public name and the revision."""
    return {
        leaf.metadata.name: f"{type(leaf).metadata.dataset['path']}@{leaf.metadata.dataset['revision']}"
        for leaf in leaves(task)
    }


def use_folder(task: AbsTask, data_dir: Path) -> None:
    """Make a task read local folders instead of the Hub; it is to be run in a :func:`private_cache`.

    The data folder has one for each leaf, laid out as its Hub repository and called as that or as the task.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    folders = {path.name.lower(): path for path in sorted(data_dir.iterdir()) if path.is_dir()}
    for leaf in leaves(task):
        names = list(dict.fromkeys((leaf.metadata.name, str(leaf.metadata.dataset["path"]).rpartition("/")[2])))
        folder = next((folders[name.lower()] for name in names if name.lower() in folders), None)
        if folder is None:
            raise FileNotFoundError(f"--data-dir has no folder {' or '.join(names)} for the task {leaf.metadata.name}.")
        dataset = {
            **leaf.metadata.dataset,
            "path": str(folder.resolve()),
            "revision": f"{REVISION}-sha256-{folder_sha256(folder)[:12]}",
        }
        leaf.metadata = leaf.metadata.model_copy(update={"dataset": dataset})


@contextmanager
def private_cache() -> Iterator[None]:
    """Let ``datasets`` use a cache folder that goes away with the block.

    Its own cache tells local folders apart by name and card, not by their data: a changed folder, or another one of the
    same name, would silently be taken for the earlier one.
    """
    before = datasets.config.HF_DATASETS_CACHE
    with TemporaryDirectory(prefix="e2rank-datasets-") as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        try:
            yield
        finally:
            datasets.config.HF_DATASETS_CACHE = before


def limit_queries(task: AbsTask, limit: int) -> None:
    """Load a task's data and keep the first queries of every split; the corpus stays whole.

    Raises:
        ValueError: The task has no queries.
    """
    if not searches(task):
        raise ValueError(f"{task.metadata.name} has no queries to limit; leave out --limit, or the task.")
    for leaf in leaves(task):
        assert isinstance(leaf, AbsTaskRetrieval)
        leaf.load_data()
        leaf.convert_v1_dataset_format_to_v2(num_proc=None)
        for splits in leaf.dataset.values():
            for name in leaf.eval_splits:
                if name in splits:
                    _limit_split(splits[name], limit)


def _limit_split(data: Any, limit: int) -> None:
    judged = data["relevant_docs"]
    places = [place for place, id_ in enumerate(data["queries"]["id"]) if judged.get(id_)][:limit]
    data["queries"] = data["queries"].select(places)
    kept = set(data["queries"]["id"])
    data["relevant_docs"] = {id_: documents for id_, documents in judged.items() if id_ in kept}
    if data["top_ranked"] is not None:
        data["top_ranked"] = {id_: documents for id_, documents in data["top_ranked"].items() if id_ in kept}


def record_queries(task: AbsTask) -> PerQuery:
    """Make a task note the nDCG@10 of each query.

    Returns:
        A table that fills while the task is evaluated; it stays empty for tasks that do not search.
    """
    recorded: PerQuery = {}

    def recorder(leaf: AbsTask, original: Callable[..., Any]) -> Callable[..., Any]:
        def task_specific_scores(scores: Any, *arguments: Any, hf_split: str, hf_subset: str, **options: Any) -> Any:
            by_query = {query: metrics["ndcg_cut_10"] for query, metrics in sorted(scores.items())}
            recorded[f"{leaf.metadata.name}/{hf_subset}/{hf_split}"] = by_query
            return original(leaf, scores, *arguments, hf_split=hf_split, hf_subset=hf_subset, **options)

        return task_specific_scores

    for leaf in leaves(task):
        if isinstance(leaf, AbsTaskRetrieval):
            leaf.task_specific_scores = recorder(leaf, type(leaf).task_specific_scores)  # type: ignore[method-assign]
    return recorded


def one_level(recorded: PerQuery) -> dict[str, float]:
    """Scores by query; where a task searches in several places, the place is part of the query's name."""
    if len(recorded) == 1:
        return next(iter(recorded.values()))
    return {f"{place}/{query}": score for place, scores in recorded.items() for query, score in scores.items()}
