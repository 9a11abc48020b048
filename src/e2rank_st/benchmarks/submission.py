"""Results by MTEB → a submission to its leaderboard: checked result files, and a model for the mteb package.

Written, all or nothing: ``results/{org}__{model}/{revision}/{Task}.json`` with ``model_meta.json`` and
``run_settings.jsonl``, the two-stage mode below ``experiments/``, and ``mteb_model.py`` for mteb's models. Results that
are local, partial, incomplete or of another revision are named, and nothing is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from string import Template
from typing import Any

from mteb.cache import ResultCache
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.results import TaskResult

from e2rank_st.adapters import read_adapter_config
from e2rank_st.benchmarks.models import load
from e2rank_st.benchmarks.mteb_model import MODES, load_e2rank
from e2rank_st.benchmarks.results import Result, read_entries
from e2rank_st.benchmarks.submission_checks import Refused, check, experiment_of, mode_of, written_by_mteb
from e2rank_st.benchmarks.training_data import TrainingData
from e2rank_st.model import E2Rank
from e2rank_st.storage import replacing, write_text
from e2rank_st.training.losses import CITATION

__all__ = ["MODULE", "Options", "Refused", "make_meta", "read_results", "submit", "write"]

MODULE = "mteb_model.py"
WRITTEN = {"results", MODULE}
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


@dataclass(frozen=True)
class Options:
    """A submission.

    Attributes:
        results: Result files of MTEB, or folders of them.
        model: Folder of the trained adapter, with its ``training.json``.
        name: Hub id of the model, as results have it.
        revision: The commit there that was evaluated.
        release_date: When that was published, ``YYYY-MM-DD``.
        benchmarks: Sets of tasks that have to be complete.
        training_code: Address of the training code, if it is public.
        output_dir: Where to write.
    """

    results: Sequence[Path]
    model: Path
    name: str
    revision: str
    release_date: str
    benchmarks: Sequence[str] = ()
    training_code: str | None = None
    output_dir: Path = Path("submission")


def submit(options: Options) -> list[Result]:
    """Check results, and write a submission.

    Returns:
        The results in it.

    Raises:
        Refused: The results must not be submitted.
        ValueError: There are no results, or the folder holds something else.
        OSError: A file cannot be read or written.
        ImportError: The weights of the model are not installed and the Hub cannot be reached.
    """
    results = read_results(options.results, options.name)
    check(results, options.revision, options.benchmarks)
    meta = make_meta(options, load(str(options.model), device="cpu").model, TrainingData.read(options.model))
    write(results, meta, options.output_dir)
    return results


def read_results(paths: Iterable[Path], name: str) -> list[Result]:
    """Read the results of a model by MTEB.

    Args:
        paths: Result files, or folders of them; those of other models and benchmarks are passed over.
        name: The model's name in results.

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


def make_meta(options: Options, model: E2Rank, data: TrainingData) -> ModelMeta:
    """Describe a model for the mteb package.

    Args:
        options: Its name, its folder, its commit and the like.
        model: The model.
        data: Its training data; MTEB adds that of its base.

    Raises:
        ValidationError: A value is not allowed.
    """
    backbone: Any = model.transformers_model
    parameters = list(model.parameters())
    return ModelMeta(
        loader=load_e2rank,
        loader_kwargs={"prompts": dict(model.prompts)},
        name=options.name,
        revision=options.revision,
        release_date=options.release_date,
        languages=["eng-Latn"],
        n_parameters=sum(parameter.numel() for parameter in parameters),
        n_embedding_parameters=backbone.get_input_embeddings().weight.numel(),
        memory_usage_mb=round(sum(parameter.nbytes for parameter in parameters) / 2**20),
        max_tokens=model.max_seq_length,
        embed_dim=model.get_embedding_dimension(),
        license="apache-2.0",
        open_weights=True,
        public_training_code=options.training_code,
        public_training_data=None,  # public sources, but no data set of ours
        framework=["Sentence Transformers", "PyTorch", "safetensors", "Transformers"],
        reference=f"https://huggingface.co/{options.name}",
        similarity_fn_name=ScoringFunction("cosine"),
        use_instructions=any(model.prompts.values()),
        training_datasets={row.mteb for row in data.sets},
        adapted_from=read_adapter_config(options.model)["base_model_name_or_path"],
        citation=CITATION.strip(),
    )


def write(results: Sequence[Result], meta: ModelMeta, folder: Path) -> list[ModelMeta]:
    """Write the leaderboard's layout and the model for the mteb package, all or nothing.

    Args:
        results: Results that were checked.
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
        raise ValueError(f"{folder} holds {others[0]}, which is not of a submission; choose another --output-dir.")
    by_experiment: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: (MODES.index(mode_of(result)), result.task)):
        by_experiment.setdefault(json.dumps(experiment_of(result)), []).append(result)
    metas = [meta.model_copy(update={"experiment_kwargs": json.loads(key) or None}) for key in by_experiment]
    with replacing(folder) as fresh:
        for experiment, part in zip(metas, by_experiment.values(), strict=True):
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
