"""Throughput of training: the trainer against a bare forward and backward pass of the same backbone, same batches.

The trainer's time is that of its loop: collating, embedding, loss, gradients, clipping, optimizer. The bare passes get
the batches collated. Slates are docstrings of Python's standard library, their first lines the queries, so no data file
is needed. Both take turns, so that a machine whose speed drifts treats them alike; the share is the median over turns.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from e2rank_st import E2Rank
from e2rank_st.benchmarks.speed import Speeds
from e2rank_st.data.docstrings import collect
from e2rank_st.provenance import environment
from e2rank_st.training.losses import COLUMNS
from e2rank_st.training.trainer import E2RankTrainer, E2RankTrainingArguments

__all__ = ["time_training"]

DOCUMENTS = 8  # a slate's
Batch = Mapping[str, Tensor]


class Clock(TrainerCallback):
    """Measures the training loop: from before its first batch is collated to the end of its last step."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note when the only epoch begins; at the first step two batches have been collated already."""
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note when a step ends."""
        self.seconds = time.perf_counter() - self.began


def slates(number: int, seed: int = 0) -> DatasetDict:
    """Rows of docstrings: the query is the first line of the first one."""
    texts = [docstring.document for docstring in collect()]
    draw = random.Random(seed)
    rows = []
    for _ in range(number):
        documents = draw.sample(texts, DOCUMENTS)
        labels = [float(DOCUMENTS - place) for place in range(DOCUMENTS)]
        gold = [place == 0 for place in range(DOCUMENTS)]
        rows.append({"query": documents[0].splitlines()[0], "documents": documents, "labels": labels, "gold": gold})
    return DatasetDict({"docstrings": Dataset.from_list(rows)})


def make_trainer(model: E2Rank, data: DatasetDict, folder: str, steps: int, batch_size: int) -> E2RankTrainer:
    """A trainer of all weights with the joint loss, that saves nothing."""
    arguments = E2RankTrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=batch_size, learning_rate=1e-6, save_strategy="no",
        report_to=[], use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = E2RankTrainer(model, arguments, train_dataset=data)
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    return trainer


def features(batch: Batch) -> list[dict[str, Tensor]]:
    """The inputs of each column."""
    names = ("input_ids", "attention_mask")
    return [{name: batch[f"{column}_{name}"] for name in names} for column in COLUMNS if f"{column}_input_ids" in batch]


def bare(model: E2Rank, batches: Sequence[Batch]) -> float:
    """Seconds of a forward and backward pass over all batches, and of nothing else."""
    backbone = cast(Any, model.transformers_model)
    model.train()
    began = time.perf_counter()
    for batch in batches:
        outputs = [backbone(**column).last_hidden_state.float().mean() for column in features(batch)]
        torch.stack(outputs).sum().backward()
        model.zero_grad()
    return time.perf_counter() - began


def measure(model: E2Rank, turns: int, steps: int, batch_size: int) -> tuple[int, list[float], list[float]]:
    """Tokens of a turn, and the seconds of each turn: of the trainer and of the bare passes."""
    data = slates(steps * batch_size)
    trained, passes = [], []
    with tempfile.TemporaryDirectory() as folder:
        batches = list(make_trainer(model, data, folder, steps, batch_size).get_train_dataloader())
        for turn in range(turns + 1):  # the first one warms up
            clock, trainer = Clock(), make_trainer(model, data, folder, steps, batch_size)
            trainer.add_callback(clock)
            trainer.train()
            seconds = bare(model, batches)
            if turn:
                trained.append(clock.seconds)
                passes.append(seconds)
    tokens = sum(int(column["attention_mask"].sum()) for batch in batches for column in features(batch))
    return tokens, trained, passes


def time_training(turns: int = 3, steps: int = 8, batch_size: int = 4) -> Speeds:
    """Time the training of the bundled model's base.

    Args:
        turns: Counted runs of each, at least 1.
        steps: Steps of a run, at least 1.
        batch_size: Slates of a step, at least 1.
    """
    tokens, trained, passes = measure(E2Rank.from_bundled(trained=False), turns, steps, batch_size)
    share = round(statistics.median(b / a for a, b in zip(trained, passes, strict=True)), 3)
    rows = [
        {"variant": name, "tokens per second": round(tokens / statistics.median(times)), "share": part}
        for name, times, part in (("bare forward and backward pass", passes, 1.0), ("trainer", trained, share))
    ]
    size = f"{steps} steps of {batch_size} slates, {tokens:,} tokens, {turns} turns"
    return Speeds(f"{size}; {environment()['hardware']['device']}", rows)
