"""Settings → a trained model: ``e2rank train settings.yaml --learning_rate 1e-5``.

With several processes: ``torchrun --nproc-per-node 2 -m e2rank_st.cli train settings.yaml``, or with
``accelerate launch -m``.
The output folder gets ``checkpoint-*`` and, in the end, ``final``: the model (an adapter where one was trained), what
it was made of (``training.json``) and its curves (``curves.png``), the folder whole or not at all.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from e2rank_st.adapters import bundled_folder
from e2rank_st.console import Column, show
from e2rank_st.evaluation.evaluator import SYSTEMS
from e2rank_st.evaluation.significance import randomisation_test
from e2rank_st.model import BUNDLED_MODELS, E2Rank, load_model
from e2rank_st.search.index import Index
from e2rank_st.storage import replacing
from e2rank_st.training.datasets import document_index, load_evaluator, load_training_data, with_prompt_orders
from e2rank_st.training.plan import make_plan
from e2rank_st.training.record import PARTS, History, check_plotting, read_earlier, split_log
from e2rank_st.training.settings import Parsed, Settings, help_text, parse_settings
from e2rank_st.training.trainer import E2RankTrainer, E2RankTrainingArguments, last_checkpoint

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["TrainingRun", "load_base", "main"]

logger = logging.getLogger(__name__)

FINAL, UNFINISHED_FINAL = "final", ".unfinished-final"
RUN_FILE = "run.json"  # what a run was started with, for one that resumes it
ORDER_FILE = "prompt_order.json"  # the order of the documents in prompts, for the same
DOCUMENT_FOLDER = "documents"  # the vectors of frozen documents, for the same
SHOWN = (*PARTS, "learning_rate")
# What peft says at every checkpoint without the Hub: it asks there about a vocabulary that training leaves alone.
PEFT_LOOKUPS = ("Unable to fetch remote file", "Could not find a config file in")
PLAN_COLUMNS = (Column("plan"), Column("", share=1))
SUMMARY_COLUMNS = (
    Column("nDCG@10", share=1),
    Column("before", ".4f"),
    Column("after", ".4f", style="green"),
    Column("difference", "+.4f"),
    Column("p", ".3f"),
)


def main(argv: Sequence[str]) -> None:
    """Train by settings; progress goes to standard error, plan and summary to standard output.

    Args:
        argv: A YAML file, if any, and flags: see :func:`~e2rank_st.training.settings.parse_settings`.

    Raises:
        ValueError: A setting or the data is wrong, or the output folder holds another run.
        OSError: A file cannot be read or written.
        ImportError: A package that training needs is missing.
    """
    if {"-h", "--help", "--help-all"} & set(argv):
        sys.stdout.write(help_text(everything="--help-all" in argv))
        return
    parsed = parse_settings(argv)
    check_plotting()
    if not sys.stderr.isatty():
        disable_progress_bar()
    for message in PEFT_LOOKUPS:
        warnings.filterwarnings("ignore", message=message)
    if parsed.arguments.process_index:
        logging.getLogger("e2rank_st").setLevel(logging.WARNING)
    if parsed.settings.dry_run:
        _show_plan(parsed)
        return
    run = TrainingRun(*parsed)
    history = run.train()
    if run.is_main:
        show(SUMMARY_COLUMNS, _summary(history), title=f"{run.output / FINAL}, {history.steps} steps")


def _show_plan(parsed: Parsed) -> None:
    with TemporaryDirectory() as folder:  # the host makes its output folder, whatever comes of it
        parsed.arguments.output_dir = folder
        run = TrainingRun(*parsed)
        plan = make_plan(run.trainer)
    if run.is_main:
        show(PLAN_COLUMNS, plan.lines())


class TrainingRun:
    """A model, its data and a trainer, wired by settings.

    Args:
        settings: What to train on what.
        arguments: How to train.
        told: What the record of the run holds of both.

    Raises:
        ValueError: A setting or the data is wrong, or the output folder holds another run.
        OSError: A file cannot be read.
        ImportError: A package that training needs is missing.
    """

    def __init__(
        self, settings: Settings, arguments: E2RankTrainingArguments, told: Mapping[str, Any] | None = None
    ) -> None:
        self.settings, self.arguments, self.told = settings, arguments, dict(told or {})
        self.output = Path(str(arguments.output_dir))
        self.is_main = arguments.process_index == 0
        self._check_output()
        bundled = BUNDLED_MODELS.get(settings.model, False)
        self.earlier = read_earlier(bundled_folder() if bundled else Path(settings.model))
        set_seed(arguments.seed)
        model = load_base(settings, arguments)
        train, train_records = load_training_data(settings.train, arguments.seed, settings.skip_bad_rows)
        self.evaluator, dev_records = load_evaluator(settings.dev, arguments.seed)
        self.data = {"train": train_records, "dev": dev_records}
        frozen = self._prepare(model, train)
        _adapt(model, settings)
        self.trainer = E2RankTrainer(model, arguments, train_dataset=train, evaluator=self.evaluator, frozen=frozen)
        for callback in (ProgressCallback, PrinterCallback):
            self.trainer.remove_callback(callback)
        self.trainer.add_callback(_Measured(self))
        self.trainer.add_callback(_Bar() if sys.stderr.isatty() else _Lines())
        _forget_texts(model)

    def _prepare(self, model: E2Rank, train: DatasetDict) -> Index | None:
        """Embed what the model before training decides on: prompt orders, and the vectors of frozen documents."""
        arguments, index = self.arguments, None
        if self.settings.dry_run:  # a plan counts tokens, and needs no vectors for it
            return _zeros(model, train) if arguments.freeze_documents else None
        bar = sys.stderr.isatty()
        with arguments.main_process_first(local=False), _mixed_precision(arguments):
            if arguments.freeze_documents:
                index = document_index(model, train, self.output / DOCUMENT_FOLDER, show_progress_bar=bar)
            if arguments.listwise_weight or arguments.localized_weight:
                with_prompt_orders(model, train, self.output / ORDER_FILE, index, show_progress_bar=bar)
        return index

    def train(self) -> History:
        """Train, choose the best checkpoint, and write the result to ``final`` in the output folder.

        Returns:
            What is also written there.

        Raises:
            ValueError: The run to resume had other data.
        """
        checkpoint = last_checkpoint(self.output) if self.settings.resume and self._has_checkpoint() else None
        self.start = self._resumed() if checkpoint else self._started()
        # Within the training loop, where the model is wrapped for several processes: not every way bears it before.
        self.arguments.eval_on_start = self.evaluator is not None and checkpoint is None
        began = time.perf_counter()
        self.trainer.train(checkpoint)
        seconds = time.perf_counter() - began
        state = self.trainer.state
        losses, dev = split_log(state.log_history, self._metric_names())
        after = self._metrics(self.trainer.evaluate()) if self.evaluator else {}
        history = History(
            settings=self.told,
            loss=cast("Any", self.trainer.loss).get_config_dict(),
            data=self.data,
            log=losses,
            dev=dev,
            before=self.start["before"],
            after=after,
            p_values=self._p_values(self.start["per_query"]),
            best_step=self.trainer.best_step if self.arguments.load_best_model_at_end else None,
            steps=state.global_step,
            resumed_from=int(checkpoint.rpartition("-")[2]) if checkpoint else None,
            seconds=round(seconds, 1),
            earlier=self.earlier,
        )
        self._save(history)
        return history

    def _check_output(self) -> None:
        if self.settings.dry_run or self.settings.resume:
            return
        if self._has_checkpoint() or (self.output / FINAL).exists():
            raise ValueError(f"{self.output} holds a run already; resume it (--resume), or name another output_dir.")

    def _has_checkpoint(self) -> bool:
        return any(self.output.glob("checkpoint-*"))

    def _evaluators(self) -> list[Any]:
        return [] if self.evaluator is None else self.evaluator.evaluators

    def _metric_names(self) -> list[str]:
        return [f"{evaluator.name}_{metric}" for evaluator in self._evaluators() for metric in evaluator.metrics]

    def _metrics(self, found: Mapping[str, float]) -> dict[str, float]:
        """The evaluator's metrics under their own names."""
        return {name: found[f"eval_{name}"] for name in self._metric_names()}

    def _started(self, metrics: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Keep what a resumed run needs; the metrics of the model before training as soon as they are known."""
        per_query = {evaluator.name: evaluator.per_query for evaluator in self._evaluators()}
        before = self._metrics(metrics) if metrics else {}
        start = {
            "told": self.told,
            "data": self.data,
            "earlier": self.earlier,
            "before": before,
            "per_query": per_query,
        }
        if self.is_main:
            with replacing(self.output / RUN_FILE) as fresh:
                fresh.write_text(json.dumps(start, default=str) + "\n", encoding="utf-8")
        return start

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of an evaluation; the training loop tells of each."""
        if step == 0:
            self.start = self._started(metrics)

    def _resumed(self) -> dict[str, Any]:
        """Read what the run was started with, and compare."""
        start: dict[str, Any] = json.loads((self.output / RUN_FILE).read_text(encoding="utf-8"))
        data, told = json.loads(json.dumps([self.data, self.told], default=str))
        if start.get("earlier") != self.earlier:
            raise ValueError(
                f"{self.output} was started with another model in {self.settings.model}; start anew, in another folder."
            )
        others = [name for name in data if data[name] != start["data"][name]]
        if others:
            raise ValueError(
                f"{self.output} was started with other data ({', '.join(others)}); resume with the same, or start anew."
            )
        changed = [name for name in {*told, *start["told"]} - {"resume"} if told.get(name) != start["told"].get(name)]
        if changed:
            logger.warning("Resuming with other settings than at the start: %s.", ", ".join(sorted(changed)))
        return start

    def _p_values(self, before: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float]:
        if not self.is_main:
            return {}
        return {
            f"{evaluator.name}_{metric}": randomisation_test(
                before[evaluator.name][system], evaluator.per_query[system]
            )
            for evaluator in self._evaluators()
            for system, metric in zip(SYSTEMS, evaluator.metrics, strict=True)
        }

    def _save(self, history: History) -> None:
        """Write the model with its history: a folder that is there whole, or not at all."""
        scratch = self.output / UNFINISHED_FINAL
        if self.is_main:
            shutil.rmtree(scratch, ignore_errors=True)
        self.trainer.accelerator.wait_for_everyone()
        self.trainer.save_model(str(scratch))
        if self.is_main:
            (scratch / "training_args.bin").unlink(missing_ok=True)  # a pickle, and all in it is in the history
            history.write(scratch)
            with replacing(self.output / FINAL) as fresh:
                scratch.rename(fresh)
        self.trainer.accelerator.wait_for_everyone()


def _mixed_precision(arguments: E2RankTrainingArguments) -> torch.autocast:
    """As within a training step: a float32 adapter on bfloat16 weights takes twice as long without."""
    dtype = torch.float16 if arguments.fp16 else torch.bfloat16
    return torch.autocast(arguments.device.type, dtype, enabled=arguments.fp16 or arguments.bf16)


def _zeros(model: E2Rank, data: DatasetDict) -> Index:
    texts = list(dict.fromkeys(text for part in data.values() for row in part["documents"] for text in row))
    return Index(texts, np.zeros((len(texts), model.get_embedding_dimension() or 0), np.float32))


def load_base(settings: Settings, arguments: E2RankTrainingArguments) -> E2Rank:
    """Load the model to train, with what the settings change in it.

    Raises:
        ValueError: A setting does not fit the model.
        OSError: It cannot be loaded.
    """
    model = load_model(
        settings.model,
        preset=settings.preset,
        revision=settings.revision,
        merge=False,
        device=str(arguments.device),
        model_kwargs={"dtype": settings.dtype},
    )
    if settings.max_seq_length is not None:
        model.max_seq_length = settings.max_seq_length
    if settings.query_prompt is not None:
        model.prompts["query"] = settings.query_prompt
    changes = settings.listwise
    if arguments.num_prompt_documents is not None:
        changes["num_prompt_documents"] = arguments.num_prompt_documents
    if arguments.query_weight is not None:
        changes["query_weight"] = arguments.query_weight
    model.replace_listwise(**changes)
    if settings.dropout is not None:
        _set_dropout(model, settings.dropout)
    return model


def _set_dropout(model: E2Rank, share: float) -> None:
    for module in model.modules():
        for name in ("p",) if isinstance(module, nn.Dropout) else ("attention_dropout",):
            if hasattr(module, name):
                setattr(module, name, share)


def _adapt(model: E2Rank, settings: Settings) -> None:
    """Give the model an adapter to train, or go on with the one that it has."""
    has_adapter = getattr(model.transformers_model, "_hf_peft_config_loaded", False)
    if not settings.lora_rank and not has_adapter:
        return
    if has_adapter and settings.lora_rank:
        raise ValueError(
            f"Got lora_rank={settings.lora_rank} for a model that has an adapter already; leave it out to go on "
            "training that one, or merge it."
        )
    if not has_adapter:
        model.add_adapter(_lora(settings))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small updates would be lost in bfloat16


def _lora(settings: Settings) -> Any:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("Adapters need peft: pip install 'e2rank-st[train]'") from error
    return LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_targets or "all-linear",
    )


def _forget_texts(model: E2Rank) -> None:
    """Take the rows of the training data out of the model card that the host writes: their licence may not allow it."""
    model.model_card_data.widget, model.model_card_data.usage_examples = [], None
    for dataset in model.model_card_data.train_datasets:
        for name in ("examples", "examples_table"):
            dataset.pop(name, None)


def _summary(history: History) -> Iterator[tuple[Any, ...]]:
    for name, after in history.after.items():
        before = history.before[name]
        yield name.replace("_ndcg@10", ""), before, after, after - before, history.p_values[name]


class _Measured(TrainerCallback):
    """Tells the run of evaluations."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.run.measured(state.global_step, metrics)


class _Lines(TrainerCallback):
    """Logs a line for each entry of the trainer's log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and (line := _line(state, logs or {})):
            logger.info("%s", line)


class _Bar(ProgressCallback):
    """The host's progress bar; what it says beside goes to standard error, too."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        bar: Any = self.training_bar  # none but in the main process
        if bar is not None and (line := _line(state, logs or {})):
            bar.write(line, file=sys.stderr)


def _line(state: Any, logs: Mapping[str, Any]) -> str:
    values = [f"{name.removeprefix('eval_')} {logs[name]:.4g}" for name in logs if name in SHOWN or "_ndcg@" in name]
    return f"step {state.global_step}/{state.max_steps}: {', '.join(values)}" if values else ""
