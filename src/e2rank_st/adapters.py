"""A folder with a LoRA adapter, and the base that it names → one model with the adapter merged into the weights.

A merged model works without peft, is as fast as its base, and is saved like every model. Training here writes plain
LoRA (Hu et al. 2021) on linear layers: ``W + alpha / r · B A``. Only this form is merged; the rest is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from e2rank_st.adapter_e2rank import ADAPTER_CONFIG as CONFIG
from e2rank_st.adapter_e2rank import ADAPTER_WEIGHTS as WEIGHTS
from e2rank_st.adapter_e2rank import PREFIX, LoraAdapter
from e2rank_st.bundled import base_here, how_to_get
from e2rank_st.checkpoints import MODEL_ID
from e2rank_st.folders.check import HOME
from e2rank_st.folders.values import check_adapter
from e2rank_st.folders.weights import open_weights
from e2rank_st.storage import read_json

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "fill_adapter",
    "merge_adapter",
    "missing_base",
    "prompt_base",
    "read_adapter_config",
    "trained_adapter",
]


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of an adapter, which also names its base.

    Args:
        folder: The folder with the adapter.

    Raises:
        FileNotFoundError: The folder does not hold an adapter.
        ValueError: The adapter is not plain LoRA, its configuration is damaged, or it is a prompt adapter.
    """
    if (folder / HOME / CONFIG).is_file() and not (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder} holds a prompt adapter, which is never merged. Load it with E2Rank({str(folder)!r})."
        )
    if not (folder / CONFIG).is_file():
        state = "holds no adapter" if folder.is_dir() else "is not a folder here"
        raise FileNotFoundError(
            f"{folder} {state}: {CONFIG} is missing. Give a folder that training with lora_rank wrote."
        )
    config: dict[str, Any] = read_json(folder / CONFIG)
    check_adapter(CONFIG, config)
    return config


def prompt_base(folder: Path, *, downloaded: bool = False) -> tuple[str, str | None]:
    """Read which base a prompt adapter names.

    Args:
        folder: The folder of the prompt adapter, without its base.
        downloaded: Whether it is from the Hub, so that its base must be there, too.

    Returns:
        A folder here or a Hub id, and the base's revision on the Hub.

    Raises:
        ValueError: It does not name a base that can be loaded.
    """
    config = read_adapter_config(folder / HOME)
    base, revision = config["base_model_name_or_path"], config.get("revision")
    if base and (found := base_here(base)) != base:
        return found, None  # the wheel has one state of it
    if base and Path(base).is_dir() and not downloaded:
        return base, None
    if not MODEL_ID.fullmatch(base):
        place = "no Hub id" if downloaded else "neither a folder here nor a Hub id (org/name)"
        raise ValueError(
            f"The prompt adapter in {folder} names the base {base!r:.200}, which is {place}. Write the base's Hub id "
            f"into base_model_name_or_path in {HOME}/{CONFIG}."
        )
    return base, revision


def missing_base(base: str, error: OSError) -> str:
    """Return the words for a base that could not be loaded."""
    cause = " ".join(str(error).split())
    return f"Could not load the base {base} ({cause:.300}). Before you are offline: {how_to_get(base)}"


def merge_adapter(backbone: nn.Module, folder: Path) -> None:
    """Add an adapter's changes to the weights of its base, in place, computed in float32.

    Args:
        backbone: The transformers model that the adapter was trained on.
        folder: The folder with the adapter.

    Raises:
        FileNotFoundError: The folder does not hold an adapter.
        ValueError: The adapter is not plain LoRA, is damaged, or belongs to a different base.
    """
    adapter = LoraAdapter(read_adapter_config(folder), _read_tensors(folder / WEIGHTS))
    with torch.no_grad():
        for layer, down, up in adapter.layers(backbone):
            weight = cast("Tensor", layer.weight)
            weight.copy_(adapter.changed(weight, down, up))


def fill_adapter(backbone: Any, path: Path) -> None:
    """Load saved weights into a backbone's adapter, in float32 for every type of the base.

    Args:
        backbone: A transformers model with a peft adapter.
        path: A file of weights; peft saves them without the adapter's name.

    Raises:
        ValueError: The names or shapes of the weights differ from the adapter's, or the file is damaged.
    """
    saved = _read_tensors(path)
    (adapter,) = backbone.active_adapters()
    wanted = {name: weight for name, weight in backbone.named_parameters() if f".{adapter}." in name}
    given = {PREFIX + name.replace(f".{adapter}.", "."): name for name in wanted}
    if given.keys() != saved.keys():
        odd = sorted(given.keys() ^ saved.keys())[0]
        raise ValueError(f"{path.name} belongs to a different adapter than the one to train: {odd} is in one only.")
    for name, place in given.items():
        if saved[name].shape != wanted[place].shape:
            raise ValueError(
                f"{path.name} has {name!r} of {tuple(saved[name].shape)}; the adapter to train has one of "
                f"{tuple(wanted[place].shape)}. Give the adapter's own settings."
            )
    with torch.no_grad():
        for name, place in given.items():
            weight = wanted[place]
            weight.data = weight.data.float()  # bfloat16 would round the saved weights, and lose small updates
            weight.copy_(saved[name])


def trained_adapter(backbone: Any, base: str, revision: str | None = None) -> LoraAdapter:
    """Take a peft adapter out of a backbone, as float32 copies.

    Args:
        backbone: A transformers model with a peft adapter.
        base: Name of the base, for the adapter's configuration.
        revision: The base's revision on the Hub.

    Raises:
        ValueError: The adapter is not plain LoRA.
    """
    (adapter,) = backbone.active_adapters()
    tensors = {
        PREFIX + name.replace(f".{adapter}.", "."): weight.detach().float().cpu().clone()
        for name, weight in backbone.named_parameters()
        if f".{adapter}." in name
    }
    config = backbone.peft_config[adapter].to_dict() | {"base_model_name_or_path": base, "revision": revision}
    return LoraAdapter(json.loads(json.dumps(config, default=sorted)), tensors)  # peft keeps names of layers in a set


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with open_weights(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
