"""A trainer that is ready to start → the plan of its run: data, steps, tokens and parameters.

Tokens are counted on real batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from statistics import mean
from typing import Any

from torch import Tensor

from e2rank_st.training.labels import SlateLabels, positives, preferences
from e2rank_st.training.trainer import E2RankTrainer

__all__ = ["plan"]

BATCHES = 8  # that tokens are counted on


def plan(trainer: E2RankTrainer) -> Iterator[tuple[str, str]]:
    """Plan a run for people, as names and values. Steps and tokens are those of all processes.

    Args:
        trainer: A trainer with data to train on; some of its batches are collated.
    """
    args = trainer.args
    sources: dict[str, Any] = dict(trainer.train_dataset.items())  # type: ignore[union-attr]
    yield (
        "slates",
        f"{sum(map(len, sources.values())):,} ({', '.join(f'{name} {len(part):,}' for name, part in sources.items())})",
    )
    yield "documents", f"{sum(len(texts) for part in sources.values() for texts in part['documents']):,}"
    loader = trainer.get_train_dataloader()
    batches = list(islice(loader, BATCHES))
    labels = [SlateLabels.unpack(batch["label"]) for batch in batches]
    without_positive = mean(_share_without(positives(slates)) for slates in labels)
    without_preference = mean(_share_without(preferences(slates.labels).any(2)) for slates in labels)
    yield "nothing to learn", f"{without_positive:.1%} without positive, {without_preference:.1%} without preference"
    accumulation = args.gradient_accumulation_steps
    batches_a_step = args.world_size * accumulation
    steps = args.max_steps
    if steps <= 0:
        steps = math.ceil(args.num_train_epochs * max(math.ceil(len(loader) / accumulation), 1))
    slates_a_step = args.per_device_train_batch_size * batches_a_step
    yield "steps", f"{steps:,} of {slates_a_step} slates ({round(steps * accumulation / len(loader), 2):g} epochs)"
    masks = [[value for name, value in batch.items() if name.endswith("_attention_mask")] for batch in batches]
    tokens = mean(float(sum(mask.sum() for mask in batch)) for batch in masks) * batches_a_step
    padded = mean(float(sum(mask.numel() for mask in batch)) for batch in masks) * batches_a_step
    yield "tokens a step", f"{tokens:,.0f} (padding is {1 - tokens / max(padded, 1):.0%} of a batch)"
    yield "tokens in all", f"{tokens * steps:,.0f}"
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in trainer.model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    yield "parameters", f"{trained:,} trained of {sum(size for size, _ in sizes):,}"


def _share_without(found: Tensor) -> float:
    """Share of the slates that have nothing in ``(B, N)`` flags of their documents."""
    return 1 - found.any(1).float().mean().item()
