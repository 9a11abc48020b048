"""A run → the conditions of its numbers: versions, hardware, the state of a model, and the tokens it processed.

Nothing here identifies the owner of the machine.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from e2rank_st.modeling_e2rank import ListwiseRerank

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Cost", "counted", "environment", "model_digest", "weights_digest"]

PACKAGES = (
    "e2rank-st", "torch", "transformers", "sentence-transformers", "accelerate", "datasets", "peft", "mteb",
    "pytrec-eval-terrier",
)  # fmt: skip
FINGERPRINT_VALUES = 1024  # of each parameter: enough to distinguish models of any size


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Return the versions of the packages that can change a number, and the hardware.

    Args:
        device: Device of the model; by default the GPU, or else the CPU.

    Returns:
        ``versions`` of the installed packages; ``hardware`` with the device's name and the numbers of processes, CPUs
        and threads; ``platform``.
    """
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version for name in PACKAGES if (version := _version(name))},
        },
        "hardware": {
            "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "platform": f"{sys.platform} {platform.machine()}",
    }


def model_digest(model: nn.Module) -> Any:
    """Hash the weights of a model, its adapter, prompts and length limit; the caller may add more to the hash.

    Returns:
        An object of :mod:`hashlib`.
    """
    settings = [getattr(model, "prompts", {}), getattr(model, "max_seq_length", 0)]
    digest = weights_digest(model, json.dumps(settings).encode())
    adapter = getattr(getattr(model, "listwise", None), "adapter", None)
    for name, tensor in sorted(adapter.tensors.items()) if adapter is not None else ():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest


def weights_digest(model: nn.Module, start: bytes = b"") -> Any:
    """Hash the weights of a model, after the bytes of ``start``.

    The first values of each parameter are enough, because training changes them.

    Returns:
        An object of :mod:`hashlib`.
    """
    digest = hashlib.sha256(start)
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:  # a part that is kept on disk
            values = parameter.detach().flatten()[:FINGERPRINT_VALUES].to("cpu", torch.float32)
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return digest


@dataclass
class Cost:
    """The work of a model.

    Attributes:
        texts: Number of sequences.
        tokens: Number of their tokens, special tokens included, without padding.
        seconds: Wall-clock time, including all other work in the block; known at its end.
    """

    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0


@contextmanager
def counted(model: nn.Module | None) -> Iterator[Cost]:
    """Count the sequences and tokens of a model, in this process, while the block runs.

    The first module counts, so every method of the model is included.

    Args:
        model: A Sentence-Transformers model, or None to count nothing.

    Yields:
        The cost so far.
    """
    cost, start = Cost(), time.perf_counter()

    def count(_: nn.Module, arguments: tuple[dict[str, Tensor], ...]) -> None:
        features = arguments[0]
        mask = features.get("attention_mask")
        if "cu_seq_lens_q" in features or mask is None or mask.ndim != 2:  # flattened: without padding
            cost.texts += len(features["cu_seq_lens_q"]) - 1 if "cu_seq_lens_q" in features else 1
            cost.tokens += features["input_ids"].numel()
        else:
            cost.texts += len(mask)
            cost.tokens += int(mask.sum())

    first = [] if model is None else [next(part.children()) for part in {model, _prompt_model(model)}]
    hooks = [module.register_forward_pre_hook(count) for module in first]
    try:
        yield cost
    finally:
        for hook in hooks:
            hook.remove()
        cost.seconds = time.perf_counter() - start


def _prompt_model(model: nn.Module) -> nn.Module:
    """The model that embeds prompts, which may be a different one."""
    reranker = next((module for module in model.children() if isinstance(module, ListwiseRerank)), None)
    return model if reranker is None else reranker.prompt_model


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name: Linux has it in a file, other systems have it in a call."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
