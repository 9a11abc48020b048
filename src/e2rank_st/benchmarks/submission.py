r"""Results of run_mteb.py → what MTEB's leaderboard takes: checked result files, and a model for the mteb package.

    python eval/submission.py --results results --model models/e2rank-minilm-l6 --name org/e2rank-minilm-l6 \
        --revision 0123456789abcdef0123456789abcdef01234567 --release-date 2026-01-31 --benchmark NanoBEIR \
        --output-dir submission

Written, all or nothing: results/{org}__{model}/{revision}/{Task}.json with model_meta.json and run_settings.jsonl, the
two-stage mode below experiments/, and mteb_model.py for mteb's models. With --repository the results are committed to
a clone of that repository, on a branch of their own. Whatever is local, partial, of another revision or incomplete is
named, and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pprint import pformat
from string import Template
from typing import Any, TypeAlias

from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.results import TaskResult
from pydantic import ValidationError

from e2rank_st.adapters import read_adapter_config
from e2rank_st.benchmarks.loading import load
from e2rank_st.benchmarks.mteb_model import MODES, load_e2rank
from e2rank_st.benchmarks.mteb_tasks import datasets_of, find_tasks, searches
from e2rank_st.benchmarks.results import read_rows
from e2rank_st.benchmarks.training_data import TrainingData
from e2rank_st.model import E2Rank
from e2rank_st.storage import replacing
from e2rank_st.training.losses import CITATION

__all__ = ["Refused", "check", "commit", "make_meta", "read_records", "write"]

Record: TypeAlias = Mapping[str, Any]  # a file of run_mteb.py

COMMIT = re.compile(r"[0-9a-f]{40}")
RESULTS_REPOSITORY = "https://github.com/embeddings-benchmark/results"
MODULE = "mteb_model.py"
WRITTEN = {"results", "remote", MODULE}
EMBEDDING, TWO_STAGE = MODES
RUN_VERSIONS = ("mteb", "torch", "sentence-transformers", "transformers")  # as MTEB's own run settings have them
EXPERIMENT = ("prompt_documents", "rerank_depth")
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
    """Results that must not be submitted.

    Args:
        problems: A line for each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join((f"Nothing was written, for {len(problems)} reasons:", *problems)))
        self.problems = list(problems)


def read_records(paths: Iterable[Path], name: str) -> list[Record]:
    """Read the results of a model by MTEB.

    Args:
        paths: Result files, or folders of them; those of other models and benchmarks are passed over.
        name: What results call the model.

    Raises:
        ValueError: There are none, or a file is no result.
        OSError: A file cannot be read.
    """
    rows = [row for row in read_rows(paths) if row.benchmark == "mteb"]
    found = [row.result for row in rows if row.model == name]
    if not found:
        others = ", ".join(sorted({row.model for row in rows})) or "no model"
        raise ValueError(f"No results of {name}, but of {others}; run_mteb.py --name says what results call a model.")
    return found


def check(records: Sequence[Record], revision: str, benchmarks: Sequence[str]) -> None:
    """Check that results may be submitted.

    Args:
        records: Of one model.
        revision: The commit of the model on the Hub that they have to be of.
        benchmarks: Sets of tasks that have to be complete.

    Raises:
        Refused: They may not; the message has a line for each reason.
        ValueError: MTEB has no such task or benchmark.
    """
    tasks = {task.metadata.name: task for task in find_tasks([record["task"] for record in records], [])}
    problems = (
        [] if COMMIT.fullmatch(revision) else [f"revision {revision!r} is no commit of a Hub repository (40 digits)"]
    )
    for record in records:
        place = f"{record['task']}, {record['mode']}"
        problems += [f"{place}: {problem}" for problem in _problems(record, revision, tasks[record["task"]])]
    for benchmark in benchmarks:
        problems += _gaps(records, benchmark)
    if problems:
        raise Refused(problems)


def _problems(record: Record, revision: str, task: AbsTask) -> Iterator[str]:
    """What is wrong with a result."""
    if record["local"]:
        yield "measured on a local copy of the data; run it without --data-dir"
    if record["partial"]:
        yield "measured on a part of the queries; run it without --limit"
    if record["model"]["revision"] != revision:
        yield f"of revision {record['model']['revision']}, not {revision}; run it with that --revision"
    if record["datasets"] != datasets_of(task):
        yield f"data {record['datasets']}, where the installed MTEB has {datasets_of(task)}; run it anew"
    try:
        result = TaskResult.from_dict(dict(record["result"]))
    except ValidationError as error:
        yield f"no result as MTEB has them ({error.error_count()} errors, the first: {error.errors()[0]['msg']})"
        return
    missing = [split for split in task.eval_splits if split not in result.scores]
    if not task.is_aggregate:  # an aggregate has one subset, whatever its tasks have
        missing = [f"{split}/{part}" for split, parts in result.get_missing_evaluations(task).items() for part in parts]
    if missing:
        yield f"no scores for {', '.join(missing)}; run it anew"
    scores = [part["main_score"] for parts in result.scores.values() for part in parts]
    if any(score is None or not math.isfinite(score) for score in scores):
        yield "a score is missing or no number; run it anew"


def _gaps(records: Sequence[Record], benchmark: str) -> Iterator[str]:
    """Tasks of a benchmark without a result: of the plain embedding, and of what else was run."""
    tasks = find_tasks([], [benchmark])
    done: dict[str, set[str]] = {json.dumps({}): set()}
    for record in records:
        done.setdefault(json.dumps(_experiment(record)), set()).add(record["task"])
    for key, names in done.items():
        two_stage = json.loads(key).get("mode") == TWO_STAGE
        wanted = [task.metadata.name for task in tasks if searches(task) or not two_stage]
        if missing := [name for name in wanted if name not in names]:
            what = "the plain embedding" if key == json.dumps({}) else key
            yield f"{benchmark}, {what}: no result of {', '.join(missing)}; run them, or leave the benchmark out"


def _experiment(record: Record) -> dict[str, Any]:
    """What tells a result from the leaderboard's main one, the plain embedding in float32."""
    settings = record["settings"]
    found: dict[str, Any] = {}
    if record["mode"] != EMBEDDING:
        found = {"mode": record["mode"], **{name: settings[name] for name in EXPERIMENT}}
    if settings["dtype"] != "float32":
        found["dtype"] = settings["dtype"]
    return found


def make_meta(
    model: E2Rank,
    data: TrainingData,
    *,
    name: str,
    revision: str,
    release_date: str,
    base: str,
    training_code: str | None = None,
) -> ModelMeta:
    """Describe a model for the mteb package.

    Args:
        model: The model.
        data: What it was trained on.
        name: Its Hub id.
        revision: The commit there.
        release_date: When that was published, ``YYYY-MM-DD``.
        base: Hub id of what it was trained from; MTEB adds what that was trained on.
        training_code: Address of the code, if it is public.

    Raises:
        ValidationError: A value is not allowed.
    """
    backbone: Any = model.transformers_model
    parameters = list(model.parameters())
    return ModelMeta(
        loader=load_e2rank,
        loader_kwargs={"prompts": dict(model.prompts)},
        name=name,
        revision=revision,
        release_date=release_date,
        languages=["eng-Latn"],
        n_parameters=sum(parameter.numel() for parameter in parameters),
        n_embedding_parameters=backbone.get_input_embeddings().weight.numel(),
        memory_usage_mb=round(sum(parameter.nbytes for parameter in parameters) / 2**20),
        max_tokens=model.max_seq_length,
        embed_dim=model.get_embedding_dimension(),
        license="apache-2.0",
        open_weights=True,
        public_training_code=training_code,
        public_training_data=None,  # public sources, but no data set of ours
        framework=["Sentence Transformers", "PyTorch", "safetensors", "Transformers"],
        reference=f"https://huggingface.co/{name}",
        similarity_fn_name=ScoringFunction("cosine"),
        use_instructions=any(model.prompts.values()),
        training_datasets={row.mteb for row in data.sources},
        adapted_from=base,
        citation=CITATION.strip(),
    )


def write(records: Sequence[Record], meta: ModelMeta, folder: Path) -> list[ModelMeta]:
    """Write the leaderboard's layout and the model for the mteb package, all or nothing.

    Args:
        records: Results that were checked.
        meta: The model.
        folder: Where to; replaced if an earlier submission is there.

    Returns:
        The model as each of its experiments has it, the plain embedding first.

    Raises:
        ValueError: The folder holds something else.
        OSError: A file cannot be written.
    """
    others = sorted(path.name for path in folder.iterdir() if path.name not in WRITTEN) if folder.is_dir() else []
    if others:
        raise ValueError(f"{folder} holds {others[0]}, which is of no submission; choose another --output-dir.")
    by_experiment: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: (MODES.index(record["mode"]), record["task"])):
        by_experiment.setdefault(json.dumps(_experiment(record)), []).append(record)
    metas = [meta.model_copy(update={"experiment_kwargs": json.loads(key) or None}) for key in by_experiment]
    with replacing(folder) as fresh:
        for experiment, part in zip(metas, by_experiment.values(), strict=True):
            _write_experiment(part, experiment, ResultCache(fresh))
        (fresh / MODULE).write_text(_implementation(meta), encoding="utf-8")
    return metas


def _write_experiment(records: Sequence[Record], meta: ModelMeta, cache: ResultCache) -> None:
    # Not by the cache's own save_to_cache: that would note the versions of now for those of the run.
    folder = cache.get_task_result_path("", meta).parent
    folder.mkdir(parents=True)
    for record in records:
        TaskResult.from_dict(dict(record["result"])).to_disk(folder / f"{record['task']}.json")
    described = meta.to_dict()
    described["training_datasets"] = sorted(described["training_datasets"])
    (folder / "model_meta.json").write_text(json.dumps(described, default=str, indent=4) + "\n", encoding="utf-8")
    lines = [json.dumps(settings) + "\n" for record in records for settings in _run_settings(record)]
    (folder / "run_settings.jsonl").write_text("".join(lines), encoding="utf-8")


def _run_settings(record: Record) -> Iterator[dict[str, Any]]:
    """A row for each split, as MTEB writes them, and what else the scores depend on."""
    for split, parts in record["result"]["scores"].items():
        yield {
            "task": record["task"],
            "splits": [split],
            "version": {name: record["versions"].get(name) for name in RUN_VERSIONS},
            "encode_kwargs": {},
            "subsets": sorted(part["hf_subset"] for part in parts),
            "settings": record["settings"],
            "seed": record["seed"],
        }


def _implementation(meta: ModelMeta) -> str:
    """Source of a module for ``mteb/models/model_implementations``."""
    values = meta.model_dump(exclude={"loader"}, exclude_unset=True, mode="python")
    values["similarity_fn_name"] = meta.similarity_fn_name.value if meta.similarity_fn_name else None
    fields = "\n".join(f"    {name}={pformat(value, width=100)}," for name, value in values.items())
    assert meta.name is not None
    variable = re.sub(r"\W+", "_", meta.name.rpartition("/")[2]).lower()
    return IMPLEMENTATION.substitute(name=meta.name, variable=variable, fields=fields)


class _Repository(ResultCache):
    """MTEB's cache with another results repository than the public one."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(folder)
        self.address = address

    def download_from_remote(self, remote: str = "", *arguments: Any, **options: Any) -> Path:
        """Clone or update the repository; the argument is not used."""
        return super().download_from_remote(self.address, *arguments, **options)


def commit(metas: Sequence[ModelMeta], folder: Path, repository: str) -> Path | None:
    """Commit what :func:`write` wrote to a clone of a results repository, on a branch of its own.

    Args:
        metas: What :func:`write` returned.
        folder: Where it wrote to.
        repository: Address or path of the repository.

    Returns:
        The clone, to push from; None if the repository has these results already.

    Raises:
        RuntimeError: git failed.
        CalledProcessError: The repository cannot be cloned.
    """
    response = _Repository(folder, repository).submit_results(list(metas))
    return None if response["status"] == "no_changes" else Path(response["path"])


def main(argv: Sequence[str] | None = None) -> int:
    """Make a submission.

    Returns:
        The exit status: 1 if it is refused.
    """
    options = _parser().parse_args(argv)
    try:
        records = read_records(options.results, options.name)
        check(records, options.revision, options.benchmark)
        data, subject = TrainingData.read(options.model), load(str(options.model), device="cpu")
        base = read_adapter_config(options.model)["base_model_name_or_path"]
        told = {name: getattr(options, name) for name in ("name", "revision", "release_date", "training_code")}
        metas = write(records, make_meta(subject.model, data, base=base, **told), options.output_dir)
    except (ValueError, OSError, ImportError) as error:
        print(f"submission: error: {error}", file=sys.stderr)
        return 1
    print(f"{options.output_dir}: {len(records)} results of {options.name} at {options.revision}, and {MODULE}")
    if options.repository:
        clone = commit(metas, options.output_dir, options.repository)
        print(f"committed in {clone}; push its branch to your fork" if clone else "the repository has them already")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--results", type=Path, nargs="+", required=True, help="result files of run_mteb.py, or folders of them")
    add("--model", type=Path, required=True, help="folder of the trained adapter, with its training.json")
    add("--name", required=True, help="Hub id of the model, as results have it")
    add("--revision", required=True, help="the commit there that was evaluated")
    add("--release-date", required=True, metavar="YYYY-MM-DD", help="when that was published")
    add(
        "--benchmark",
        action="append",
        default=[],
        help="a set of tasks that has to be complete; more than once if need be",
    )
    add("--training-code", metavar="URL", help="where the training code is public")
    add("--output-dir", type=Path, default=Path("submission"), help="(default: submission)")
    add("--repository", metavar="URL", help=f"commit to a clone of this, usually {RESULTS_REPOSITORY}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
