"""Transformers at work → the seconds inside them, and the floating-point operations that the work needs at least.

The needed operations are those of the layers' matrix products, for the tokens without padding. Divided by the rate of
a matrix product on the same device, they are the least time that any program could take: the floor.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["Meter", "Products", "memory_in_use", "product_rate", "synchronize"]

ONCE_A_SEQUENCE = "pooler"  # a layer behind the last one that sees one token
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is timed


class Meter:
    """Counts, while it is entered, what goes through some models.

    Args:
        models: First modules of Sentence-Transformers models, or transformers models. One may be inside another.

    Attributes:
        seconds: Inside the models.
        flops: Operations that their inputs need.
        tokens: Tokens of their inputs, without padding.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        # What is known of a model beforehand costs no time while it counts.
        self._known = {model: (inspect.signature(model.forward), Products.of(model)) for model in models}
        self._hooks: list[Any] = []
        self._depth = 0
        self.clear()

    def clear(self) -> None:
        """Begin again from zero."""
        self.seconds, self.flops, self.tokens = 0.0, 0, 0

    def __enter__(self) -> Meter:
        """Start to count."""
        for model in self._known:
            self._hooks += [
                model.register_forward_pre_hook(self._before, with_kwargs=True),
                model.register_forward_hook(self._after),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and leave the models as they were."""
        while self._hooks:
            self._hooks.pop().remove()

    def _before(self, model: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        signature, products = self._known[model]
        if arguments and isinstance(arguments[0], Mapping):
            rows = _rows(arguments[0])
        else:
            given = signature.bind_partial(*arguments, **named).arguments
            rows = _rows({**given, **given.get("kwargs", {})})
        self.flops += sum(products.flops(new, total) for new, total in rows)
        self.tokens += sum(new for new, _ in rows)
        synchronize(next(model.parameters()).device)
        self._start = time.perf_counter()

    def _after(self, model: nn.Module, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            synchronize(next(model.parameters()).device)
            self.seconds += time.perf_counter() - self._start


def _rows(given: Mapping[str, Any]) -> list[tuple[int, int]]:
    """For each sequence of an input, its new tokens, and all tokens that they attend to."""
    ids: Tensor = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    if (ends := given.get("cu_seq_lens_q")) is not None:
        return [(size, size) for size in ends.diff().tolist()]
    rows, width = ids.shape[:2]
    cache, mask = given.get("past_key_values"), given.get("attention_mask")
    past = cache.get_seq_length() if cache is not None else 0
    if mask is None or mask.ndim != 2:
        return [(width, past + width)] * rows
    return list(zip(mask[:, -width:].sum(1).tolist(), mask.sum(1).tolist(), strict=True))


@dataclass(frozen=True)
class Products:
    """The matrix products of a model.

    Attributes:
        weights: Of the linear layers that each token goes through.
        head: Of the output layer of a model that writes, which the last token goes through.
        width: Values of all heads of all layers.
        is_causal: Whether a token attends to those before it only.
    """

    weights: int
    head: int
    width: int
    is_causal: bool

    @classmethod
    def of(cls, model: Any) -> Products:
        """Read them off a first module of a Sentence-Transformers model, or off a transformers model."""
        whole = model if isinstance(model, PreTrainedModel) else model.model
        backbone, config = whole.base_model, whole.config
        layers = [(name, layer) for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear)]
        head = whole.get_output_embeddings() if whole.can_generate() else None
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            weights=sum(layer.weight.numel() for name, layer in layers if ONCE_A_SEQUENCE not in name),
            head=0 if head is None else head.weight.numel(),
            width=config.num_hidden_layers * config.num_attention_heads * size,
            is_causal=any(getattr(part, "is_causal", False) for part in backbone.modules()),
        )

    def flops(self, new: int, total: int) -> int:
        """Operations for ``new`` tokens of a sequence that attend to ``total``, themselves included.

        Two for each weight of a linear layer and token; four for each value of the attention's heads, and pair of
        tokens (Kaplan et al. 2020, table 1). A causal model needs half of the pairs of its new tokens.
        """
        pairs = new * total - (new * (new - 1) // 2 if self.is_causal else 0)
        return 2 * (self.weights * new + self.head) + 4 * self.width * pairs


def product_rate(device: torch.device, dtype: torch.dtype, repeat: int = 3) -> float:
    """Measure operations a second of the product of two square matrices; the best of some."""
    side = SIDE.get(device.type, SIDE["cpu"])
    one, other = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(repeat + 1):
        synchronize(device)
        start = time.perf_counter()
        one @ other
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times[1:])


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_in_use(device: torch.device, *, peak: bool = False) -> int | None:
    """Bytes in use; or the most since the last call without ``peak``, which begins again.

    To begin, memory that is free but kept goes back to the system: what takes it again counts.
    """
    if device.type == "cuda":
        if peak:
            return torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        return None
    if not peak:
        with suppress(AttributeError, OSError):  # another C library has no such call
            ctypes.CDLL(None).malloc_trim(0)
        reset.write_text("5")
    name = "VmHWM:" if peak else "VmRSS:"
    lines = [line.split() for line in status.read_text().splitlines()]
    return next((int(line[1]) * 1024 for line in lines if line and line[0] == name), None)
