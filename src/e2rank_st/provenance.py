"""A run → what its numbers depend on: versions, hardware, the state of a model, and what passed through it.

Nothing here tells whose machine it is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Cost", "counted", "environment", "model_digest", "scrubbed"]

PACKAGES = (
    "e2rank-st", "torch", "transformers", "sentence-transformers", "accelerate", "datasets", "peft", "mteb",
    "pytrec-eval-terrier",
)  # fmt: skip
TOKEN = re.compile(r"hf_\w{6,}")
# Of an absolute path the last part is enough; the slashes of a URL follow a colon or a letter.
PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[/\\](?:[^/\\\s'\":,]+[/\\])+([^/\\\s'\":,]*)")
FINGERPRINT_VALUES = 1024  # of each parameter: enough to tell models apart, however large they are


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Versions of the packages that can change a number, and the hardware.

    Args:
        device: Where the model runs; by default a GPU if there is one.

    Returns:
        ``versions`` by package, those that are installed; ``hardware`` with the device's name, processes, CPUs and
        threads; ``platform``.
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
    """Hash the weights of a model, its prompts and its length; the caller may add more to the hash.

    Of each parameter the first values are taken: a trained model differs in them.

    Returns:
        An object of :mod:`hashlib`.
    """
    settings = [getattr(model, "prompts", {}), getattr(model, "max_seq_length", 0)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()[:FINGERPRINT_VALUES].to("cpu", torch.float32)
        digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return digest


def scrubbed(text: str) -> str:
    """A message without access tokens, and with the last part only of every absolute path."""
    return PATH.sub(r"…/\1", TOKEN.sub("hf_***", text))


@dataclass
class Cost:
    """What passed through a model.

    Attributes:
        texts: Sequences.
        tokens: Their tokens, special ones included, without padding.
        seconds: Wall-clock time, whatever else was done meanwhile; known when the counting ends.
    """

    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0


@contextmanager
def counted(model: nn.Module | None) -> Iterator[Cost]:
    """Count what passes through a model, in this process, while the block runs.

    The count is taken at the first module, so it does not matter which method sends a text.

    Args:
        model: A Sentence-Transformers model, or None: then nothing is counted.

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

    hook = None if model is None else next(model.children()).register_forward_pre_hook(count)
    try:
        yield cost
    finally:
        if hook is not None:
            hook.remove()
        cost.seconds = time.perf_counter() - start


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name: Linux has it in a file, other systems in a call."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
