"""Results by MTEB → a submission to its leaderboard: checked result files, and a model for the mteb package.

Written, all or nothing: ``results/{org}__{model}/{revision}/{Task}.json`` with ``model_meta.json`` and
``run_settings.jsonl``, the two-stage mode below ``experiments/``, and ``mteb_model.py`` for mteb's models. Results that
are local, partial, incomplete or of another revision are named, and nothing is written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pprint import pformat
from string import Template
from typing import Any

from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.results import TaskResult
from pydantic import ValidationError

from e2rank_st.adapters import read_adapter_config
from e2rank_st.benchmarks.models import load
from e2rank_st.benchmarks.mteb_model import MODES, load_e2rank
from e2rank_st.benchmarks.mteb_tasks import find_tasks, searches, sources_of
from e2rank_st.benchmarks.results import Result, read_entries
from e2rank_st.benchmarks.training_data import TrainingData
from e2rank_st.model import E2Rank
from e2rank_st.storage import replacing, write_text
from e2rank_st.training.losses import CITATION

__all__ = ["MODULE", "Refused", "check", "make_meta", "read_results", "submit", "write"]

MODULE = "mteb_model.py"
WRITTEN = {"results", MODULE}
COMMIT = re.compile(r"[0-9a-f]{40}")
TWO_STAGE = MODES[1]
PLAIN = "{}"  # settings of the leaderboard's main result, as JSON
EXPERIMENT = ("prompt_documents", "rerank_depth")
RUN_VERSIONS = ("mteb", "torch", "sentence-transformers", "transformers")  # as MTEB's own run settings have them
IMPLEMENTATION = Template('''"""$name: an embedding model that also reranks listwise (E2Rank)."""

from __future__ import annotations

from typing import Any

from mteb.models.model_meta import ModelMeta


def load_e2rank(model_name: str, revision: str | None = None, **kwargs: Any) -> Any:
    try:
        from e2rank_st.benchmarks import mteb_model as mteb
    except ImportError as error:
        raise ImportError("$name needs its package: pip install 'e2rank-st[eval]'") from error
    return mteb.load_e2rank(model_name, revision, **kwargs)


$variable = ModelMeta(
    loader=load_e2rank,
$fields
)
''')


class Refused(ValueError):
    """Results that must not be submitted; the message has a line for each reason."""


def submit(
    paths: Iterable[Path],
    folder: Path,
    name: str,
    revision: str,
    *,
    release_date: str,
    benchmarks: Sequence[str],
    training_code: str | None,
    output_dir: Path,
) -> list[Result]:
    """Check results, and write a submission: the options are those of ``e2rank eval submit``.

    Returns:
        The results in it.

    Raises:
        Refused: The results must not be submitted.
        ValueError: There are no results, or the folder holds something else.
        OSError: A file cannot be read or written.
        ImportError: The weights of the model are not installed and the Hub cannot be reached.
    """
    results = read_results(paths, name)
    check(results, revision, benchmarks)
    told = {"name": name, "revision": revision, "release_date": release_date, "public_training_code": training_code}
    write(results, make_meta(load(str(folder), device="cpu").model, folder, **told), output_dir)
    return results


def read_results(paths: Iterable[Path], name: str) -> list[Result]:
    """Read the results of a model by MTEB; those of other models and benchmarks are passed over.

    Raises:
        ValueError: There are none, or a file is not a result.
        OSError: A file cannot be read.
    """
    entries = [entry for entry in read_entries(paths) if entry.result.benchmark == "mteb"]
    found = [entry.result for entry in entries if entry.model == name]
    if not found:
        others = ", ".join(sorted({entry.model for entry in entries})) or "no model"
        raise ValueError(f"No results of {name}, but of {others}; e2rank eval mteb --name gives a model its name.")
    return found


def check(results: Sequence[Result], revision: str, benchmarks: Sequence[str]) -> None:
    """Check that results of a model may be submitted, and that sets of tasks are complete.

    Raises:
        Refused: They may not; the message has a line for each reason.
        ValueError: MTEB has no such task or benchmark.
    """
    tasks = {task.metadata.name: task for task in find_tasks([result.task for result in results], [])}
    problems = []
    if not COMMIT.fullmatch(revision):
        problems.append(f"revision {revision!r} is not a commit of a Hub repository (40 digits)")
    for result in results:
        place = f"{result.task}, {', '.join(result.systems)}"
        problems += [f"{place}: {problem}" for problem in _problems(result, revision, tasks[result.task])]
    for benchmark in benchmarks:
        problems += _gaps(results, benchmark)
    if problems:
        raise Refused("\n".join((f"Nothing was written, for {len(problems)} reasons:", *problems)))


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
    for key, part in by_experiment(results).items():
        two_stage, done = "mode" in json.loads(key), {result.task for result in part}
        wanted = [task.metadata.name for task in tasks if searches(task) or not two_stage]
        if missing := [name for name in wanted if name not in done]:
            setting = "the plain embedding" if key == PLAIN else key
            yield f"{benchmark}, {setting}: no result of {', '.join(missing)}; run them, or leave the benchmark out"


def by_experiment(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by their difference from the leaderboard's main result, the plain embedding in float32; that is first."""
    found: dict[str, list[Result]] = {PLAIN: []}
    for result in sorted(results, key=lambda result: result.task):
        settings = {}
        if TWO_STAGE in result.systems:
            settings = {"mode": TWO_STAGE, **{name: result.settings[name] for name in EXPERIMENT}}
        if result.settings["dtype"] != "float32":
            settings["dtype"] = result.settings["dtype"]
        found.setdefault(json.dumps(settings), []).append(result)
    return found


def make_meta(model: E2Rank, folder: Path, **told: Any) -> ModelMeta:
    """Describe a model for the mteb package; what is ``told`` are the fields of ``ModelMeta`` that no file tells.

    Raises:
        ValidationError: A value is not allowed.
    """
    backbone: Any = model.transformers_model
    parameters = list(model.parameters())
    return ModelMeta(
        loader=load_e2rank,
        loader_kwargs={"prompts": dict(model.prompts)},
        languages=["eng-Latn"],
        n_parameters=sum(parameter.numel() for parameter in parameters),
        n_embedding_parameters=backbone.get_input_embeddings().weight.numel(),
        memory_usage_mb=round(sum(parameter.nbytes for parameter in parameters) / 2**20),
        max_tokens=model.max_seq_length,
        embed_dim=model.get_embedding_dimension(),
        license="apache-2.0",
        open_weights=True,
        public_training_data=None,  # public sources, but no data set of ours
        framework=["Sentence Transformers", "PyTorch", "safetensors", "Transformers"],
        reference=f"https://huggingface.co/{told['name']}",
        similarity_fn_name=ScoringFunction("cosine"),
        use_instructions=any(model.prompts.values()),
        training_datasets={row.mteb for row in TrainingData.read(folder).sets},
        adapted_from=read_adapter_config(folder)["base_model_name_or_path"],
        citation=CITATION.strip(),
        **told,
    )


def write(results: Sequence[Result], meta: ModelMeta, folder: Path) -> list[ModelMeta]:
    """Write the leaderboard's layout and the model for the mteb package, all or nothing, over an earlier submission.

    Returns:
        The model as each of its experiments has it, the plain embedding first.

    Raises:
        ValueError: The folder holds something else.
        OSError: A file cannot be written.
    """
    others = sorted(path.name for path in folder.iterdir() if path.name not in WRITTEN) if folder.is_dir() else []
    if others:
        raise ValueError(f"{folder} holds {others[0]}, which is not of a submission; choose another --output-dir.")
    parts = [(key, part) for key, part in by_experiment(results).items() if part]
    metas = [meta.model_copy(update={"experiment_kwargs": json.loads(key) or None}) for key, _ in parts]
    with replacing(folder) as fresh:
        for experiment, (_, part) in zip(metas, parts, strict=True):
            _write_model(part, experiment, ResultCache(fresh))
        write_text(fresh / MODULE, _implementation(meta))
    return metas


def _write_model(results: Sequence[Result], meta: ModelMeta, cache: ResultCache) -> None:
    # Not by the cache's own save_to_cache: that would note the versions of now for those of the run.
    folder = cache.get_task_result_path("", meta).parent
    folder.mkdir(parents=True)
    for result in results:
        TaskResult.from_dict(written_by_mteb(result)).to_disk(folder / f"{result.task}.json")
    described = meta.to_dict()
    described["training_datasets"] = sorted(described["training_datasets"])
    write_text(folder / "model_meta.json", json.dumps(described, default=str, indent=4) + "\n")
    lines = [json.dumps(settings) + "\n" for result in results for settings in _run_settings(result)]
    write_text(folder / "run_settings.jsonl", "".join(lines))


def _run_settings(result: Result) -> Iterator[dict[str, Any]]:
    """A row for each split, as MTEB writes them, and the settings that the scores depend on."""
    for split, parts in written_by_mteb(result)["scores"].items():
        yield {
            "task": result.task,
            "splits": [split],
            "version": {name: result.environment["versions"].get(name) for name in RUN_VERSIONS},
            "encode_kwargs": {},
            "subsets": sorted(part["hf_subset"] for part in parts),
            "settings": {name: value for name, value in result.settings.items() if name != "seed"},
            "seed": result.settings["seed"],
        }


def _implementation(meta: ModelMeta) -> str:
    """Source of a module for ``mteb/models/model_implementations``."""
    values = meta.model_dump(exclude={"loader"}, exclude_unset=True, mode="python")
    values["similarity_fn_name"] = meta.similarity_fn_name.value if meta.similarity_fn_name else None
    fields = "\n".join(f"    {name}={pformat(value, width=100)}," for name, value in values.items())
    assert meta.name is not None
    variable = re.sub(r"\W+", "_", meta.name.rpartition("/")[2]).lower()
    return IMPLEMENTATION.substitute(name=meta.name, variable=variable, fields=fields)
