"""A trainer that is ready to start → the plan of its run: data, steps, tokens and parameters.

Tokens are counted on real batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import mean
from typing import Any

from torch import Tensor

from e2rank_st.training.labels import SlateLabels, positives, preferences
from e2rank_st.training.trainer import E2RankTrainer

__all__ = ["Plan", "make_plan"]

BATCHES = 8  # that tokens are counted on


@dataclass(frozen=True)
class Plan:
    """The plan of a training run.

    Attributes:
        slates: Slates of each source.
        documents: Documents of all slates.
        without_positive: Share of the slates of the counted batches that teach the contrastive loss nothing.
        without_preference: The same for the listwise loss.
        epochs: Passes over the data.
        steps: Optimizer steps.
        slates_per_step: Of all processes.
        tokens_per_step: Of all processes, without padding.
        padded_tokens_per_step: With padding.
        tokens: Of the whole run, without padding.
        trained_parameters: Numbers that change.
        parameters: All numbers of the model.
    """

    slates: Mapping[str, int]
    documents: int
    without_positive: float
    without_preference: float
    epochs: float
    steps: int
    slates_per_step: int
    tokens_per_step: int
    padded_tokens_per_step: int
    tokens: int
    trained_parameters: int
    parameters: int

    def lines(self) -> Iterator[tuple[str, str]]:
        """The plan for people: names and values."""
        sources = ", ".join(f"{name} {count:,}" for name, count in self.slates.items())
        yield "slates", f"{sum(self.slates.values()):,} ({sources})"
        yield "documents", f"{self.documents:,}"
        yield (
            "nothing to learn",
            f"{self.without_positive:.1%} without positive, {self.without_preference:.1%} without preference",
        )
        yield "steps", f"{self.steps:,} of {self.slates_per_step} slates ({self.epochs:g} epochs)"
        padding = 1 - self.tokens_per_step / max(self.padded_tokens_per_step, 1)
        yield "tokens a step", f"{self.tokens_per_step:,} (padding is {padding:.0%} of a batch)"
        yield "tokens in all", f"{self.tokens:,}"
        yield "parameters", f"{self.trained_parameters:,} trained of {self.parameters:,}"


def make_plan(trainer: E2RankTrainer) -> Plan:
    """Plan a run, collating some of its batches.

    Args:
        trainer: A trainer with data to train on.
    """
    args = trainer.args
    sources: dict[str, Any] = dict(trainer.train_dataset.items())  # type: ignore[union-attr]
    loader = trainer.get_train_dataloader()
    batches = list(islice(loader, BATCHES))
    processes, accumulation = args.world_size, args.gradient_accumulation_steps
    steps = args.max_steps
    if steps <= 0:
        steps = math.ceil(args.num_train_epochs * max(math.ceil(len(loader) / accumulation), 1))
    masks = [[value for name, value in batch.items() if name.endswith("_attention_mask")] for batch in batches]
    tokens = mean(float(sum(mask.sum() for mask in batch)) for batch in masks) * processes * accumulation
    padded = mean(float(sum(mask.numel() for mask in batch)) for batch in masks) * processes * accumulation
    labels = [SlateLabels.unpack(batch["label"]) for batch in batches]
    parameters = list(trainer.model.parameters())
    return Plan(
        slates={name: len(part) for name, part in sources.items()},
        documents=sum(len(texts) for part in sources.values() for texts in part["documents"]),
        without_positive=mean(_share_without(positives(slates)) for slates in labels),
        without_preference=mean(_share_without(preferences(slates.labels).any(2)) for slates in labels),
        epochs=round(steps * accumulation / len(loader), 2),
        steps=steps,
        slates_per_step=args.per_device_train_batch_size * processes * accumulation,
        tokens_per_step=round(tokens),
        padded_tokens_per_step=round(padded),
        tokens=round(tokens * steps),
        trained_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        parameters=sum(parameter.numel() for parameter in parameters),
    )


def _share_without(found: Tensor) -> float:
    """Share of the slates that have nothing in ``(B, N)`` flags of their documents."""
    return 1 - found.any(1).float().mean().item()
