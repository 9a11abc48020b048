"""Checkpoints of a run → the mean of their weights.

What a run passes through lies close together, and the mean of it is often better than any of it (Izmailov et al. 2018,
"Averaging Weights Leads to Wider Optima and Better Generalization"). The mean of an adapter's factors is not quite that
of their products; along one run the two differ by a few percent of the change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from e2rank_st.adapters import WEIGHTS
from e2rank_st.model import E2Rank

__all__ = ["mean_weights", "read_weights"]


def read_weights(folder: Path, *, merged: bool = False) -> dict[str, Tensor]:
    """Read the weights of a checkpoint.

    Args:
        folder: Where it is.
        merged: Whether those of the whole model are wanted, also where the folder holds an adapter.

    Returns:
        By name: of the adapter, as peft names them, or of the whole model.

    Raises:
        OSError: There are none.
    """
    if not merged and (folder / WEIGHTS).exists():
        return load_file(folder / WEIGHTS)
    weights: dict[str, Tensor] = E2Rank(str(folder), device="cpu").state_dict()
    return weights


def mean_weights(checkpoints: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the weights of N checkpoints of one run.

    Args:
        checkpoints: Their weights, taken one at a time.

    Returns:
        Floating-point weights in float32; others, which do not change in a run, as they are in the last.

    Raises:
        ValueError: There are none, or they are not of the same model.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for weights in checkpoints:
        if count and weights.keys() != total.keys():
            odd = sorted(weights.keys() ^ total.keys())[0]
            raise ValueError(f"The checkpoints are of different models: {odd} is in some only.")
        for name, values in weights.items():
            if not values.is_floating_point():
                total[name] = values
            else:
                total[name] = total[name] + values.float() if count else values.float()
        count += 1
    if not count:
        raise ValueError("Got no checkpoints to take the mean of.")
    return {name: values / count if values.is_floating_point() else values for name, values in total.items()}
