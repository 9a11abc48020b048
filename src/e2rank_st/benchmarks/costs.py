"""Forward passes of a model → what they took: texts, tokens, seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor, nn

__all__ = ["Cost", "counted"]


@dataclass
class Cost:
    """What a step took.

    Attributes:
        texts: How many sequences went through the model.
        tokens: Their tokens, special ones included, without padding.
        seconds: Wall-clock time, whatever else was done meanwhile.
    """

    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0


@contextmanager
def counted(model: SentenceTransformer) -> Iterator[Cost]:
    """Count what goes through a model, in this process, while the block runs.

    It is seen at the first module, so that it does not matter who sends it, and by what method.

    Args:
        model: The model.

    Yields:
        The cost; the seconds are known when the block is left.
    """
    cost, start = Cost(), time.perf_counter()

    def count(module: nn.Module, arguments: tuple[dict[str, Tensor], ...]) -> None:
        features = arguments[0]
        if "cu_seq_lens_q" in features:  # flattened: no padding, and no row a text
            cost.texts += len(features["cu_seq_lens_q"]) - 1
            cost.tokens += features["input_ids"].numel()
        else:
            cost.texts += len(features["attention_mask"])
            cost.tokens += int(features["attention_mask"].sum())

    hook = model[0].register_forward_pre_hook(count)
    try:
        yield cost
    finally:
        hook.remove()
        cost.seconds = time.perf_counter() - start
