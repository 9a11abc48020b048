"""A YAML file and flags → the settings of a training run. Flags win, and both know the same names.

The names are those of the dataclasses in :data:`KINDS`; the last one has all arguments of transformers' trainer. The
file is turned into flags, so that one parser checks both. An unknown name is refused with the nearest known one.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.util import get_device_name
from transformers import HfArgumentParser

from e2rank_st.training.fields import setting
from e2rank_st.training.losses import LossOptions
from e2rank_st.training.trainer import E2RankTrainingArguments

__all__ = ["ListwiseSettings", "Parsed", "Settings", "help_text", "parse_settings"]

USAGE = "e2rank train [SETTINGS.yaml] [--NAME VALUE ...]"
DESCRIPTION = """Train an E2Rank model on slates. Settings come from a YAML file, from flags of the same names, or from
both; flags win. Stage I (pairs, contrastive only) has listwise_weight 0; the defaults train stage II."""
MORE = "--help-all also lists the rarer settings of transformers' TrainingArguments."
WIDTH, INDENT = 120, 32  # of the help text, in characters
# Of more than a hundred arguments of transformers' trainer, those that the short help text shows.
USUAL = (
    "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "bf16", "use_cpu",
    "gradient_checkpointing", "logging_steps", "eval_steps", "save_steps", "save_total_limit",
    "dataloader_num_workers", "deepspeed",
)  # fmt: skip
# Defaults that differ from those of transformers' trainer; DEV_DEFAULTS count only with data to evaluate on.
DEFAULTS = {"logging_steps": 0.02, "save_steps": 0.1, "save_total_limit": 2}
# A prompt adapter trains prompts alone: the first three cannot be otherwise.
FIXED = ("contrastive_weight", "guard_weight", "freeze_documents")
PROMPT_ADAPTER = {"contrastive_weight": 0.0, "guard_weight": 0.0, "freeze_documents": True, "lora_rank": 32}
DEV_DEFAULTS = {
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "sequential_score",
    "greater_is_better": True,
}


@dataclass
class Settings:
    """The model to train and its data. Each field's help text is in its metadata.

    Raises:
        ValueError: A value is not allowed.
    """

    model: str = setting(
        "bundled-base",
        "Folder or Hub id of the model to train; 'bundled-base' is the base of the small model in this package.",
    )
    preset: str | None = setting(None, "How to wire a plain transformers checkpoint, such as e2rank or minilm.")
    revision: str | None = setting(None, "Branch, tag or commit of a model on the Hub.")
    train: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files or folders of slates, pairs or rankings. A mapping in place of a path may have: path, name, "
            "limit (slates drawn), depth (documents of each, from the start), and the options of its reader, such as "
            "split or qrels."
        },
    )
    skip_bad_rows: bool = setting(
        False, "Leave out bad rows of the training data and report their number; else the file is refused."
    )
    dev: list[str] = field(
        default_factory=list,
        metadata={
            "help": "The same, to evaluate on. The best checkpoint has the highest mean of listwise nDCG@10. The model "
            "sorts the candidates first, unless own_first_stage is false or they are a first stage's results."
        },
    )
    max_seq_length: int | None = setting(None, "Most tokens of a query or document; by default the model's.")
    query_prompt: str | None = setting(None, "Text before a query; by default the model's.")
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        "Type of the weights. bfloat16 halves frozen weights; trained ones would lose small updates, use "
        "bf16 for them.",
    )
    dropout: float | None = setting(
        None, "Dropout of the backbone; by default its own. On CPUs it makes attention several times slower."
    )
    lora_rank: int = setting(0, "Rank of a new LoRA adapter; 0 trains all weights, or the adapter that the model has.")
    lora_alpha: int | None = setting(None, "Scale of the adapter; by default twice the rank.")
    lora_dropout: float = setting(0.0, "Dropout of the adapter.")
    lora_targets: list[str] | None = field(
        default=None, metadata={"help": "Names of the layers to adapt; by default all linear ones."}
    )
    prompt_adapter: bool = setting(
        False,
        "Train a LoRA adapter for listwise prompts alone. Queries and documents keep the model's vectors, which are "
        "computed once; a step embeds one prompt a slate. Any Sentence-Transformers model will do.",
    )
    vectors: str | None = setting(
        None, "Folder for vectors that stay, shared by runs; by default 'vectors' beside the output folder."
    )
    resume: bool = setting(False, "Go on from the last complete checkpoint in the output folder; without one, start.")
    dry_run: bool = setting(False, "Show the plan (data, steps, tokens, parameters) and do not train.")

    def __post_init__(self) -> None:
        """Check the values that nothing else checks."""
        if not self.train:
            raise ValueError("Got no training data; name files in the setting 'train'.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}.")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must be at least 0, got {self.lora_rank}.")


@dataclass(frozen=True)
class ListwiseSettings:
    """Changes to the model's listwise configuration; None keeps the model's own value.

    The names are those of :class:`~e2rank_st.modeling_e2rank.ListwiseRerank`, which also checks the values.
    """

    prompt_format: str | None = setting(None, "Name of the listwise prompt's format; by default the model's.")
    instruction: str | None = setting(None, "Instruction of the listwise prompt; by default the model's.")
    num_prompt_documents: int | None = setting(None, "Documents in a listwise prompt, K; by default the model's.")
    max_prompt_tokens: int | None = setting(None, "Most tokens of a listwise prompt; by default the model's.")
    max_query_tokens: int | None = setting(None, "Most tokens of the query in it; by default the model's.")
    candidate_order: Literal["given", "similarity"] | None = setting(
        None, "Which documents a listwise prompt shows; by default the model's order."
    )
    query_weight: float | None = setting(None, "Share of the query in the vector that ranks; by default the model's.")

    def changes(self) -> dict[str, Any]:
        """The values that are given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Parsed(NamedTuple):
    """All settings; ``told`` has, by name, the values that are not a default of this package or of the trainer."""

    settings: Settings
    listwise: ListwiseSettings
    loss: LossOptions
    arguments: E2RankTrainingArguments
    told: dict[str, Any]


KINDS: Any = (Settings, ListwiseSettings, LossOptions, E2RankTrainingArguments)


class _Parser(HfArgumentParser):
    """Raises where its base class would print a usage of two hundred lines and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_settings(argv: Sequence[str]) -> Parsed:
    """Read settings.

    Args:
        argv: A YAML file, which may be left out, and flags.

    Raises:
        ValueError: A name is unknown, or a value is not allowed; the message names the file that has it.
        OSError: The file cannot be read.
        ImportError: The file cannot be read without PyYAML.
    """
    parser = _Parser(KINDS, prog="e2rank train", usage=USAGE, allow_abbrev=False, add_help=False)
    path = Path(argv[0]) if argv and not argv[0].startswith("-") else None
    flags, from_file = list(argv[1:] if path else argv), []
    if path:
        from_file = list(_tokens(_read(path)))
        try:
            _known(parser, from_file)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    chosen = _known(parser, [*from_file, *flags])
    defaults: dict[str, Any] = DEFAULTS | (PROMPT_ADAPTER if chosen.prompt_adapter else {})
    defaults |= (DEV_DEFAULTS if chosen.dev else {}) | {"use_cpu": get_device_name() == "cpu"}
    if not chosen.output_dir:
        raise ValueError("Got no output folder; name one in the setting 'output_dir'.")
    values = vars(_known(parser, [*_tokens(defaults), *from_file, *flags]))
    unset = vars(_known(parser, []))
    told = {name: value for name, value in values.items() if value != unset[name]}
    if values["prompt_adapter"]:
        for name, needed in PROMPT_ADAPTER.items():
            if name in FIXED and values[name] != needed:
                raise ValueError(
                    f"Got {name}={values[name]} with prompt_adapter: only prompts are trained. Leave {name} out."
                )
    settings, listwise, loss, arguments = (
        kind(**{item.name: values[item.name] for item in fields(kind) if item.init}) for kind in KINDS
    )
    return Parsed(settings, listwise, loss, arguments, told)


def help_text(everything: bool = False) -> str:
    """Describe the settings.

    Args:
        everything: Whether to list all arguments of transformers' trainer, instead of the usual ones.
    """
    known = {item.name: item for item in fields(SentenceTransformerTrainingArguments) if item.init}
    groups = {
        "Model and data:": fields(Settings),
        "Listwise prompt:": fields(ListwiseSettings),
        "Loss:": fields(LossOptions),
        "Training (E2Rank):": [item for item in fields(E2RankTrainingArguments) if item.name not in known],
        "Training (transformers):": list(known.values()) if everything else [known[name] for name in USUAL],
    }
    lines = [USAGE, "", *textwrap.wrap(DESCRIPTION, WIDTH)]
    for title, items in groups.items():
        lines += ["", title, *(line for item in items for line in _described(item))]
    return "\n".join(lines if everything else [*lines, "", MORE]) + "\n"


def _described(item: Field[Any]) -> list[str]:
    default = (DEFAULTS | DEV_DEFAULTS).get(item.name, item.default)
    shown = f" [{default}]" if default not in (None, MISSING, "") else ""
    text = " ".join(str(item.metadata["help"]).split()) + shown
    head = f"  --{item.name} ".ljust(INDENT)
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * INDENT)


def _known(parser: _Parser, tokens: Sequence[str]) -> argparse.Namespace:
    """Parse flags; refuse anything else."""
    values, unknown = parser.parse_known_args(list(tokens))
    if unknown:
        name = unknown[0].split("=")[0].removeprefix("--").replace("-", "_")
        if not unknown[0].startswith("--"):
            raise ValueError(
                f"Got {unknown[0]!r} where a setting was expected; write --name value, lists after a name."
            )
        nearest = difflib.get_close_matches(name, vars(values), n=1, cutoff=0.0)[0]
        raise ValueError(f"Unknown setting {name!r}; did you mean {nearest!r}? --help lists all.")
    return values


def _read(path: Path) -> Mapping[str, Any]:
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise ImportError("Settings in YAML need PyYAML: pip install 'e2rank-st[train]'") from error
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({error}); write a line 'name: value' for each setting.") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{path} holds {type(values).__name__}; write a line 'name: value' for each setting.")
    return values


def _tokens(values: Mapping[str, Any]) -> Iterator[str]:
    """Settings as flags; a null keeps its default."""
    for name, value in values.items():
        if isinstance(value, list):
            if value:
                yield from (f"--{name}", *map(_text, value))
        elif value is not None:
            yield f"--{name}={_text(value)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
