"""A trainer that is ready to start → what it is going to do: data, tokens, steps and memory.

Tokens are counted on real batches. Memory is estimated: weights, gradients and optimizer states exactly, activations by
the formula of Korthikanti et al. (2022, Reducing Activation Recomputation in Large Transformer Models), with attention
matrices only where attention is not fused. Expect it to be right within a factor of two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from e2rank_st.training.labels import SlateLabels, positives, preferences
from e2rank_st.training.trainer import E2RankTrainer

__all__ = ["Plan", "make_plan"]

BATCHES = 8  # that tokens are counted on
# Numbers kept for the backward pass of a layer: per token and hidden dimension, and per pair of tokens and head.
ACTIVATIONS, ATTENTION = 17, 2.5
WIDTH, MIXED_WIDTH = 4, 3  # bytes of such a number; under autocast some are of half precision and some are not
MASTER, MOMENTS = 4, 8  # bytes a trained parameter: a gradient in float32, Adam's two moments


@dataclass(frozen=True)
class Plan:
    """What a training run is going to do.

    Attributes:
        slates: Slates of each source.
        documents: Documents of all slates.
        without_positive: Share of the slates of the counted batches that the contrastive loss learns nothing from.
        without_preference: The same for the listwise loss.
        epochs: Passes over the data.
        steps: Optimizer steps.
        slates_per_step: Of all processes.
        tokens_per_step: Of all processes, without padding.
        padded_tokens_per_step: With it.
        tokens: Of the whole run, without padding.
        trained_parameters: Numbers that change.
        parameters: All.
        weights_bytes: Of a process: weights, gradients, optimizer states, and the copy that a guard compares with.
        activations_bytes: Of a process, at the largest counted batch.
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
    weights_bytes: int
    activations_bytes: int

    def lines(self) -> Iterator[tuple[str, str]]:
        """What to show people: name and value."""
        sources = ", ".join(f"{name} {count:,}" for name, count in self.slates.items())
        yield "slates", f"{sum(self.slates.values()):,} ({sources})"
        yield "documents", f"{self.documents:,}"
        yield (
            "nothing to learn",
            f"{self.without_positive:.1%} without positive, {self.without_preference:.1%} without preference",
        )
        yield "steps", f"{self.steps:,} of {self.slates_per_step} slates ({self.epochs:g} epochs)"
        padding = 1 - self.tokens_per_step / max(self.padded_tokens_per_step, 1)
        yield "tokens a step", f"{self.tokens_per_step:,} (padding takes another {padding:.0%} of a batch)"
        yield "tokens in all", f"{self.tokens:,}"
        yield "parameters", f"{self.trained_parameters:,} trained of {self.parameters:,}"
        yield (
            "memory (estimate)",
            (f"{_gib(self.weights_bytes)} weights and optimizer, {_gib(self.activations_bytes)} activations"),
        )


def make_plan(trainer: E2RankTrainer) -> Plan:
    """Plan a run, collating some of its batches.

    Args:
        trainer: A trainer with data to train on.
    """
    args = trainer.args
    sources: dict[str, Any] = dict(trainer.train_dataset.items())  # type: ignore[union-attr]
    loader = trainer.get_train_dataloader()
    batches = [_Batch.of(batch) for batch in islice(loader, BATCHES)]
    processes, accumulation = args.world_size, args.gradient_accumulation_steps
    steps = args.max_steps
    if steps <= 0:
        steps = math.ceil(args.num_train_epochs * max(math.ceil(len(loader) / accumulation), 1))
    mean = {name: sum(getattr(batch, name) for batch in batches) / len(batches) for name in _Batch.__annotations__}
    model = trainer.model
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return Plan(
        slates={name: len(part) for name, part in sources.items()},
        documents=sum(len(texts) for part in sources.values() for texts in part["documents"]),
        without_positive=mean["without_positive"],
        without_preference=mean["without_preference"],
        epochs=round(steps * accumulation / len(loader), 2),
        steps=steps,
        slates_per_step=args.per_device_train_batch_size * processes * accumulation,
        tokens_per_step=round(mean["tokens"] * processes * accumulation),
        padded_tokens_per_step=round(mean["padded"] * processes * accumulation),
        tokens=round(mean["tokens"] * processes * accumulation * steps),
        trained_parameters=trained,
        parameters=sum(parameter.numel() for parameter in parameters),
        weights_bytes=_weights_bytes(parameters, isinstance(getattr(trainer.loss, "reference", None), torch.nn.Module)),
        activations_bytes=_activations_bytes(trainer, batches),
    )


@dataclass(frozen=True)
class _Batch:
    """What is counted on a batch."""

    tokens: float
    padded: float
    longest: float
    pairs: float
    without_positive: float
    without_preference: float

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> _Batch:
        masks = [value for name, value in batch.items() if name.endswith("_attention_mask")]
        slates = SlateLabels.unpack(batch["label"])
        return cls(
            tokens=sum(int(mask.sum()) for mask in masks),
            padded=sum(mask.numel() for mask in masks),
            longest=max(mask.shape[1] for mask in masks),
            pairs=sum(mask.numel() * mask.shape[1] for mask in masks),
            without_positive=1 - positives(slates).any(1).float().mean().item(),
            without_preference=1 - preferences(slates.labels).any((1, 2)).float().mean().item(),
        )


def _weights_bytes(parameters: list[torch.nn.Parameter], has_copy: bool) -> int:
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return weights * (2 if has_copy else 1) + trained * (MASTER + MOMENTS)


def _activations_bytes(trainer: E2RankTrainer, batches: list[_Batch]) -> int:
    args, config = trainer.args, cast("Any", trainer.model.transformers_model).config
    largest = max(batches, key=lambda batch: batch.padded)
    tokens, pairs = largest.padded, largest.pairs
    limit = args.mini_batch_num_tokens or (args.mini_batch_size or math.inf) * largest.longest
    if limit < tokens:
        tokens, pairs = limit, limit * largest.longest
    layer = tokens * int(config.hidden_size) * ACTIVATIONS
    if _keeps_attention(config, trainer.model.device.type):
        layer += pairs * int(config.num_attention_heads) * ATTENTION
    layers = int(config.num_hidden_layers)
    # With checkpointing: the input of each layer, and one layer in full.
    numbers = layer + tokens * int(config.hidden_size) * layers if args.gradient_checkpointing else layer * layers
    return round(numbers * (MIXED_WIDTH if args.bf16 or args.fp16 else WIDTH))


def _keeps_attention(config: Any, device: str) -> bool:
    """Whether the matrices of attention are kept: eager attention does, and so do CPUs where there is dropout."""
    dropout = max(getattr(config, name, 0.0) or 0.0 for name in ("attention_dropout", "attention_probs_dropout_prob"))
    return config._attn_implementation == "eager" or (device == "cpu" and dropout > 0)


def _gib(number: float) -> str:
    return f"{number / 2**30:.2f} GiB"
