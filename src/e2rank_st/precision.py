"""A device → the type of weights that it computes with fastest."""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import Any

import torch
from sentence_transformers.util import get_device_name

__all__ = ["fastest_dtype", "with_dtype"]

logger = logging.getLogger(__name__)

INSTRUCTIONS = ("amx_bf16", "avx512_bf16")  # of processors that multiply bfloat16 without a detour
SIDE, REPEAT = 768, 5  # of the product that is timed: some milliseconds in all
GAIN = 1.2  # how many times faster it must be, since bfloat16 costs precision


def with_dtype(dtype: str | torch.dtype, **kwargs: Any) -> dict[str, Any]:
    """Put the type of the weights into the keyword arguments of a Sentence-Transformers model.

    Args:
        dtype: A type or its name; ``"auto"`` for :func:`fastest_dtype`; ``"saved"`` leaves it to the checkpoint.
        **kwargs: The other arguments.

    Raises:
        ValueError: The type is given twice, or for modules that are made already.
    """
    if dtype == "saved":
        return kwargs
    given = kwargs.get("model_kwargs") or {}
    if twice := {"dtype", "torch_dtype"} & given.keys():
        raise ValueError(f"Got dtype={dtype!r} and {twice.pop()!r} in model_kwargs; give one of them.")
    if kwargs.get("modules") is not None:
        raise ValueError(f"Got dtype={dtype!r} for modules that are made already; convert them, and leave dtype out.")
    if dtype == "auto":
        dtype = fastest_dtype(torch.device(kwargs.get("device") or get_device_name()))
    return {**kwargs, "model_kwargs": {**given, "dtype": dtype}}


@cache
def fastest_dtype(device: torch.device) -> torch.dtype:
    """Choose bfloat16 where it is clearly faster than float32, and float32 elsewhere.

    A processor must have the instructions, and a short product must show that they help: a virtual machine may claim
    them. The choice is written to the log.
    """
    if device.type == "cuda":
        is_faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_faster = device.type == "cpu" and has_instructions() and gain(device) >= GAIN
    dtype = torch.bfloat16 if is_faster else torch.float32
    logger.info("dtype='auto': %s on %s.", str(dtype).removeprefix("torch."), device)
    return dtype


def has_instructions() -> bool:
    """Whether the processor says that it multiplies bfloat16; an older torch cannot ask it."""
    ask: Any = getattr(torch.cpu, "get_capabilities", dict)
    found = ask()
    return any(found.get(name) for name in INSTRUCTIONS)


def gain(device: torch.device) -> float:
    """How many times faster a product of bfloat16 is than one of float32."""
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        one, other = (torch.rand(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
        times[dtype] = min(_seconds(one, other) for _ in range(REPEAT))
    return times[torch.float32] / times[torch.bfloat16]


def _seconds(one: torch.Tensor, other: torch.Tensor) -> float:
    start = time.perf_counter()
    one @ other
    return time.perf_counter() - start
