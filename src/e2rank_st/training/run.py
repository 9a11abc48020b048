"""Settings → a trained model: ``e2rank train settings.yaml --learning_rate 1e-5``.

With several processes: ``torchrun --nproc-per-node 2 -m e2rank_st.cli train settings.yaml``, or with
``accelerate launch -m``.
The output folder gets ``checkpoint-*`` and, in the end, ``final``: the model (an adapter, if one was trained), the
record of the run (``training.json``) and its curves (``curves.png``). ``final`` is there whole or not at all.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from e2rank_st.console import Column, show
from e2rank_st.evaluation.evaluator import SYSTEMS
from e2rank_st.evaluation.significance import randomisation_test
from e2rank_st.model import E2Rank
from e2rank_st.search.texts import TextVectors
from e2rank_st.search.vectors import distinct
from e2rank_st.storage import read_json, replacing, write_errors, write_text
from e2rank_st.training.base import AdapterEvaluator, adapt, load_base, taught
from e2rank_st.training.datasets import frozen_vectors, load_evaluator, load_training_data, with_prompt_orders
from e2rank_st.training.plan import plan
from e2rank_st.training.record import PARTS, TrainingRecord, check_plotting, described, read_earlier, split_log
from e2rank_st.training.resuming import complete_checkpoints
from e2rank_st.training.settings import Parsed, help_text, parse_settings
from e2rank_st.training.trainer import E2RankTrainer, E2RankTrainingArguments

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["Run", "main", "prepare", "train"]

logger = logging.getLogger(__name__)

FINAL, UNFINISHED_FINAL = "final", ".unfinished-final"
RUN_FILE = "run.json"  # how a run was started, for a later resume
ORDER_FILE = "prompt_order.json"  # the order of the documents in prompts, for the same
VECTOR_FOLDER = "vectors"  # those of frozen documents and queries, for the same and for other runs
SHOWN = (*PARTS, "learning_rate")
# Warnings of peft at every checkpoint without the Hub: it asks there about a vocabulary that training leaves alone.
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
        argv: A YAML file, which may be left out, and flags: see :func:`~e2rank_st.training.settings.parse_settings`.

    Raises:
        ValueError: A setting or the data is wrong, or the output folder holds a run already.
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
        with TemporaryDirectory() as folder:  # transformers' trainer makes its output folder in any case
            parsed.arguments.output_dir = folder
            run = prepare(parsed)
            lines = list(plan(run.trainer))
        if run.is_main:
            show(PLAN_COLUMNS, lines)
        return
    run = prepare(parsed)
    record = train(run)
    if run.is_main:
        before = record.before
        rows = [
            (name.replace("_ndcg@10", ""), before[name], after, after - before[name], record.p_values[name])
            for name, after in record.after.items()
        ]
        show(SUMMARY_COLUMNS, rows, title=f"{run.output / FINAL}, {record.steps} steps")


@dataclass(frozen=True)
class Run:
    """A model, its data and a trainer, wired by settings and ready to start.

    Attributes:
        parsed: The settings.
        model: The model.
        trainer: The trainer, which holds the data and the model that is trained: with a prompt adapter, a different one
            for the prompts.
        data: Where the data comes from, by ``train`` and ``dev``.
        earlier: The record of the run that made the model, or None.
    """

    parsed: Parsed
    model: E2Rank
    trainer: E2RankTrainer
    data: Mapping[str, Any]
    earlier: Mapping[str, Any] | None

    @property
    def output(self) -> Path:
        """The output folder."""
        return Path(str(self.parsed.arguments.output_dir))

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self.parsed.arguments.process_index == 0)

    @property
    def evaluators(self) -> list[Any]:
        """An evaluator for each set of dev data."""
        evaluator: Any = self.trainer.evaluator
        return [] if evaluator is None else list(evaluator.evaluators)

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics of all evaluators."""
        return [f"{evaluator.name}_{metric}" for evaluator in self.evaluators for metric in evaluator.metrics]


def prepare(parsed: Parsed) -> Run:
    """Load the model and the data, embed the documents that need it, and wire a trainer.

    Raises:
        ValueError: A setting or the data is wrong, or the output folder holds a run already.
        OSError: A file cannot be read.
        ImportError: A package that training needs is missing.
    """
    settings, arguments = parsed.settings, parsed.arguments
    output = Path(str(arguments.output_dir))
    if not (settings.dry_run or settings.resume) and (any(output.glob("checkpoint-*")) or (output / FINAL).exists()):
        raise ValueError(f"{output} holds a run already; resume it (--resume), or name a different output_dir.")
    earlier = read_earlier(Path(settings.model))
    set_seed(arguments.seed)
    model = load_base(settings, parsed.listwise, str(arguments.device))
    data, train_records = load_training_data(settings.train, arguments.seed, settings.skip_bad_rows, parsed.loss)
    evaluator, dev_records = load_evaluator(settings.dev, arguments.seed)
    documents, queries = _embed(model, data, parsed)
    trained = adapt(model, settings)
    if settings.prompt_adapter and evaluator is not None and not settings.dry_run:
        with arguments.main_process_first(local=False):
            evaluator = AdapterEvaluator(evaluator, model, _vector_folder(parsed))
    trainer = E2RankTrainer(
        trained, arguments, train_dataset=data, evaluator=evaluator, loss_options=parsed.loss, frozen=documents,
        frozen_queries=queries,
    )  # fmt: skip
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(_Bar() if sys.stderr.isatty() else _Lines())
    _forget_texts(trained)
    return Run(parsed, model, trainer, {"train": train_records, "dev": dev_records}, earlier)


def _embed(model: E2Rank, data: DatasetDict, parsed: Parsed) -> tuple[TextVectors | None, TextVectors | None]:
    """Embed with the model before training: frozen documents and queries, and for the order of documents in prompts."""
    arguments, loss, settings = parsed.arguments, parsed.loss, parsed.settings
    if settings.dry_run:  # a plan counts tokens, and needs no vectors for it
        return (_zeros(model, data) if loss.freeze_documents else None), None
    output, documents, queries = Path(str(arguments.output_dir)), None, None
    folder = _vector_folder(parsed)
    bar = {"show_progress_bar": sys.stderr.isatty()}
    # The vectors beside a prompt adapter are those that users have, whatever a training step computes with.
    mixed = nullcontext() if settings.prompt_adapter else _mixed_precision(arguments)
    precision = "" if settings.prompt_adapter else f"bf16={arguments.bf16} fp16={arguments.fp16}"
    with arguments.main_process_first(local=False), mixed:
        if loss.freeze_documents:
            documents = frozen_vectors(model, data, "documents", folder, precision, **bar)
        if settings.prompt_adapter:
            queries = frozen_vectors(model, data, "query", folder, precision, **bar)
        if loss.trains_prompts:
            with_prompt_orders(model, data, output / ORDER_FILE, documents, queries, **bar)
    return documents, queries


def _vector_folder(parsed: Parsed) -> Path:
    folder = parsed.settings.vectors
    return Path(folder) if folder else Path(str(parsed.arguments.output_dir)).absolute().parent / VECTOR_FOLDER


def train(run: Run) -> TrainingRecord:
    """Train, choose the best checkpoint, and write the result to ``final`` in the output folder.

    Returns:
        The record that is also written there.

    Raises:
        ValueError: The run to resume had different data or a different model, or its last checkpoint is damaged.
        OSError: A file cannot be read or written.
    """
    arguments, trainer = run.parsed.arguments, run.trainer
    found = complete_checkpoints(run.output) if run.parsed.settings.resume else []
    checkpoint = found[-1] if found else None
    if checkpoint:
        _check_start(run)
    elif run.is_main:
        if any(run.output.glob("checkpoint-*")):
            logger.warning("%s has no complete checkpoint; the run starts from the beginning.", run.output)
        _write_start(run)
    # Within the training loop, where the model is wrapped for several processes.
    arguments.eval_on_start = trainer.evaluator is not None and checkpoint is None
    trainer.add_callback(_FirstEvaluation(run))
    began = time.perf_counter()
    with write_errors(run.output):
        trainer.train(True if checkpoint else None)
    seconds = time.perf_counter() - began
    losses, dev = split_log(trainer.state.log_history, run.metric_names)  # before an evaluation that is not a step's
    after = _evaluate_kept(run)
    start = read_json(run.output / RUN_FILE) if run.is_main else {"before": {}, "per_query": {}}
    record = TrainingRecord(
        settings=run.parsed.told,
        loss=cast("Any", trainer.loss).get_config_dict(),
        data=run.data,
        log=losses,
        dev=dev,
        before=start["before"],
        after=after,
        p_values=_p_values(run, start["per_query"]) if run.is_main else {},
        best_step=trainer.best_step if arguments.load_best_model_at_end else None,
        steps=trainer.state.global_step,
        resumed_from=int(checkpoint.name.rpartition("-")[2]) if checkpoint else None,
        seconds=round(seconds, 1),
        earlier=run.earlier,
        model=described(run.model),
    )
    _save(run, record)
    return record


def _evaluate_kept(run: Run) -> dict[str, float]:
    """Evaluate the weights that are kept. Its line would name the last step, and the summary has the scores."""
    if not run.evaluators:
        return {}
    if run.is_main and run.parsed.arguments.load_best_model_at_end:
        logger.info("evaluating the kept checkpoint: step %s", run.trainer.best_step)
    run.trainer.remove_callback(_Lines)
    return _metrics(run, run.trainer.evaluate())


def _metrics(run: Run, found: Mapping[str, float]) -> dict[str, float]:
    """The evaluators' metrics under their own names."""
    return {name: found[f"eval_{name}"] for name in run.metric_names}


def _write_start(run: Run, metrics: Mapping[str, float] | None = None) -> None:
    """Keep what a resumed run needs, the metrics of the model before training as soon as they are known."""
    start = {
        "told": run.parsed.told,
        "data": run.data,
        "earlier": run.earlier,
        "before": _metrics(run, metrics) if metrics else {},
        "per_query": {evaluator.name: evaluator.per_query for evaluator in run.evaluators},
    }
    write_text(run.output / RUN_FILE, json.dumps(start, default=str) + "\n")


def _read_start(run: Run) -> dict[str, Any]:
    path = run.output / RUN_FILE
    start = read_json(path) if path.is_file() else None
    if not isinstance(start, dict) or not {"told", "data", "before", "per_query"} <= start.keys():
        raise ValueError(f"{path} does not say how the run was started; put it back, or start anew, in a new folder.")
    return start


def _check_start(run: Run) -> None:
    """Compare a run that is resumed with its start."""
    start, settings = _read_start(run), run.parsed.settings
    data, told = json.loads(json.dumps([run.data, run.parsed.told], default=str))
    if start.get("earlier") != run.earlier:
        raise ValueError(
            f"{run.output} was started with another model in {settings.model}; start anew, in a different folder."
        )
    different = [name for name in data if data[name] != start["data"][name]]
    if different:
        raise ValueError(
            f"{run.output} was started with different data ({', '.join(different)}); resume with the same, or start "
            "anew."
        )
    changed = [name for name in {*told, *start["told"]} - {"resume"} if told.get(name) != start["told"].get(name)]
    if changed:
        logger.warning("Resuming with settings that differ from those at the start: %s.", ", ".join(sorted(changed)))


def _p_values(run: Run, before: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    return {
        f"{evaluator.name}_{metric}": randomisation_test(before[evaluator.name][system], evaluator.per_query[system])
        for evaluator in run.evaluators
        for system, metric in zip(SYSTEMS, evaluator.metrics, strict=True)
    }


def _save(run: Run, record: TrainingRecord) -> None:
    """Write the model with its record: the folder is there whole or not at all."""
    scratch = run.output / UNFINISHED_FINAL
    if run.is_main:
        shutil.rmtree(scratch, ignore_errors=True)
    run.trainer.accelerator.wait_for_everyone()
    if not run.parsed.settings.prompt_adapter:
        run.trainer.save_model(str(scratch))
    elif run.is_main:
        run.model.listwise.adapter = taught(cast("Any", run.trainer.model), run.model)
        run.model.save_prompt_adapter(scratch)
    if run.is_main:
        (scratch / "training_args.bin").unlink(missing_ok=True)  # a pickle; the record has all that is in it
        record.write(scratch)
        with replacing(run.output / FINAL) as fresh:
            scratch.rename(fresh)
    run.trainer.accelerator.wait_for_everyone()


def _mixed_precision(arguments: E2RankTrainingArguments) -> torch.autocast:
    """The precision of a training step; without it a float32 adapter on bfloat16 weights takes twice as long."""
    dtype = torch.float16 if arguments.fp16 else torch.bfloat16
    return torch.autocast(arguments.device.type, dtype, enabled=arguments.fp16 or arguments.bf16)


def _zeros(model: E2Rank, data: DatasetDict) -> TextVectors:
    texts = distinct(texts for part in data.values() for texts in part["documents"])
    return TextVectors(texts, np.zeros((len(texts), model.get_embedding_dimension() or 0), np.float32))


def _forget_texts(model: E2Rank) -> None:
    """Take texts of the training data out of the card that Sentence-Transformers writes: a licence may forbid them."""
    model.model_card_data.widget, model.model_card_data.usage_examples = [], None
    for dataset in model.model_card_data.train_datasets:
        for name in ("examples", "examples_table"):
            dataset.pop(name, None)


class _FirstEvaluation(TrainerCallback):
    """Keeps the evaluation of the model before training."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if state.global_step == 0 and self.run.is_main:
            _write_start(self.run, metrics)


class _Lines(TrainerCallback):
    """Logs a line for each entry of the trainer's log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and (line := _line(state, logs or {})):
            logger.info("%s", line)


class _Bar(ProgressCallback):
    """Transformers' progress bar, with the lines of the log on standard error, too."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        bar: Any = self.training_bar  # None outside the main process
        if bar is not None and (line := _line(state, logs or {})):
            bar.write(line, file=sys.stderr)


def _line(state: Any, logs: Mapping[str, Any]) -> str:
    values = [f"{name.removeprefix('eval_')} {logs[name]:.4g}" for name in logs if name in SHOWN or "_ndcg@" in name]
    return f"step {state.global_step}/{state.max_steps}: {', '.join(values)}" if values else ""
