"""Throughput of training: the trainer against a bare forward and backward pass of the same backbone, same batches.

The trainer's time is that of its loop: collating, embedding, loss, gradients, clipping, optimizer. The bare passes get
the batches collated. Slates are docstrings of Python's standard library, their first lines the queries, so no data file
is needed. Both take turns, so that a machine whose speed drifts treats them alike; the share is the median over turns.

    python eval/benchmark_training.py
    python eval/benchmark_training.py --turns 5 --steps 20 --json > benchmark.json
"""

from __future__ import annotations

import argparse
import json
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
from e2rank_st.data.docstrings import collect
from e2rank_st.provenance import environment
from e2rank_st.training.losses import COLUMNS
from e2rank_st.training.trainer import E2RankTrainer, E2RankTrainingArguments

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


def main() -> None:
    """Measure and print a line for each, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="counted runs of each (default: 3)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a run (default: 8)")
    parser.add_argument("--batch-size", type=int, default=4, help="slates of a step (default: 4)")
    parser.add_argument("--json", action="store_true", help="write JSON instead of text")
    options = parser.parse_args()
    for name in ("turns", "steps", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    tokens, trained, passes = measure(
        E2Rank.from_bundled(trained=False), options.turns, options.steps, options.batch_size
    )
    device = environment()["hardware"]["device"]
    report = {
        "processor": device,
        "torch": torch.__version__,
        "tokens": tokens,
        "trainer_tokens_per_second": round(tokens / statistics.median(trained)),
        "bare_tokens_per_second": round(tokens / statistics.median(passes)),
        "share": round(statistics.median(b / a for a, b in zip(trained, passes, strict=True)), 3),
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(
        f"{options.steps} steps of {options.batch_size} slates, {tokens:,} tokens, {options.turns} turns; {environment()['hardware']['device']}"
    )
    print(f"trainer                  {report['trainer_tokens_per_second']:>8,} tokens/s")
    print(f"bare forward + backward  {report['bare_tokens_per_second']:>8,} tokens/s")
    print(f"share                    {report['share']:>8.1%}")


if __name__ == "__main__":
    main()
