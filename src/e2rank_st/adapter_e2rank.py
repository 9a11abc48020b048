"""A LoRA adapter in PEFT's files → a transformer with its weights changed, beside the one that stays as it is.

A prompt adapter counts for listwise prompts only. So there are two transformers. The second one shares everything with
the first but the adapted weights, ``W + alpha / r · B A`` (Hu et al. 2021). Nothing is switched on or off: any number
of threads may use both, a prompt takes no longer than without the adapter, and other vectors stay bit for bit.

A part of the remote code of a Hub repository: see ``modeling_e2rank.py``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "LoraAdapter", "check_lora"]

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft puts it before the name of a layer
COMPILED = "_orig_mod."  # torch.compile puts it into the name of a layer
# Values that keep the formula; those of the second row must be false or empty.
PLAIN = {"peft_type": "LORA", "bias": "none"}
ABSENT = (
    "use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication",
    "use_qalora", "use_bdlora", "lora_bias", "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
    "arrow_config", "megatron_config",
)  # fmt: skip


def check_lora(name: str, config: Mapping[str, Any]) -> None:
    """Check that a configuration of PEFT is that of plain LoRA.

    Raises:
        ValueError: It is not; the message names the values.
    """
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise ValueError(
            f"{name} sets 'r' to {rank!r:.80} and 'lora_alpha' to {alpha!r:.80}; give a rank of at least 1 and a "
            "number. Save the adapter again."
        )
    odd = [key for key, value in PLAIN.items() if config.get(key, value) != value]
    odd += [key for key in ABSENT if config.get(key)]
    if odd:
        found = ", ".join(f"{key}={config[key]!r:.80}" for key in odd)
        raise ValueError(f"{name} has {found}; only plain LoRA can be merged here. Merge it with peft.")


class LoraAdapter:
    """A plain LoRA adapter of linear layers.

    Args:
        config: PEFT's configuration.
        tensors: PEFT's tensors: ``lora_A`` ``(r, in)`` and ``lora_B`` ``(out, r)`` of each layer, by their names.

    Raises:
        ValueError: It is not plain LoRA, or a tensor is missing or too many.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        check_lora(ADAPTER_CONFIG, config)
        names = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
        expected = {f"{name}.{part}.weight" for name in names for part in ("lora_A", "lora_B")}
        if not names or expected != set(tensors):
            odd = sorted(expected.symmetric_difference(tensors))[:1] or ["an empty file"]
            raise ValueError(
                f"{ADAPTER_WEIGHTS} must hold pairs of lora_A and lora_B, but {odd[0]} does not fit; write it again."
            )
        self.config, self.tensors = dict(config), dict(tensors)
        self.keys = {key.removeprefix(PREFIX): key for key in sorted(names)}  # name of a layer → its tensors' name

    @classmethod
    def read(cls, config: Path, weights: Path) -> LoraAdapter:
        """Reads PEFT's two files.

        Raises:
            ValueError: A file is damaged, or the adapter is not plain LoRA.
            OSError: A file cannot be read.
        """
        try:
            return cls(json.loads(config.read_text(encoding="utf-8")), load_file(weights))
        except (SafetensorError, json.JSONDecodeError, AttributeError) as error:
            raise ValueError(f"{config.name} or {weights.name} is damaged: {error}. Save both again.") from error

    def write(self, folder: Path) -> None:
        """Writes PEFT's two files into a folder."""
        text = json.dumps(self.config, indent=2, sort_keys=True)
        (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
        contiguous = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(contiguous, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (folder / ADAPTER_WEIGHTS).chmod((folder / ADAPTER_CONFIG).stat().st_mode)  # safetensors makes it private

    def layers(self, backbone: nn.Module) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
        """Yields each adapted layer of a transformers model, with its A ``(r, in)`` and B ``(out, r)``.

        Raises:
            ValueError: The model lacks a layer, or has one of a different size.
        """
        known = {name.replace(COMPILED, ""): layer for name, layer in backbone.named_modules()}
        rank = self.config["r"]
        for name, key in self.keys.items():
            down, up = (self.tensors[f"{key}.{part}.weight"] for part in ("lora_A", "lora_B"))
            weight = getattr(known.get(name), "weight", None)
            shapes = (*up.shape, *down.shape)
            if weight is None or weight.ndim != 2 or shapes != (weight.shape[0], rank, rank, weight.shape[1]):
                got = "no such layer" if weight is None else f"one of {tuple(weight.shape)}, and r={rank}"
                raise ValueError(
                    f"{ADAPTER_WEIGHTS} changes {name!r} by {tuple(up.shape)} · {tuple(down.shape)}; the model has "
                    f"{got}. Load the adapter's own base, {self.config.get('base_model_name_or_path')!r}."
                )
            yield known[name], down, up

    def changed(self, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Returns ``W + alpha / r · B A``, computed in float32, in the type and at the place of W ``(out, in)``."""
        scale = self.config["lora_alpha"] / self.config["r"]
        change = scale * (up.float() @ down.float())
        changed: Tensor = weight.detach().float() + change.to(weight.device)
        return changed.to(weight.dtype)

    def state(self, backbone: nn.Module) -> tuple[Any, ...]:
        """Returns a key that is a different one after the adapted weights of a transformers model have changed."""
        return tuple(_state(cast("Tensor", layer.weight)) for layer, _, _ in self.layers(backbone))

    def applied(self, transformer: nn.Module, backbone: nn.Module) -> nn.Module:
        """Copies a transformer, and changes the weights of the copy; everything else is shared.

        Args:
            transformer: Sentence-Transformers' module.
            backbone: The transformers model in it.
        """
        shared: list[Any] = [*transformer.parameters(), *transformer.buffers(), getattr(backbone, "config", None)]
        shared += [value for name, value in vars(transformer).items() if not name.startswith("_")]
        apart = copy.deepcopy(transformer, {id(value): value for value in shared if value is not None})
        path = next(name for name, module in transformer.named_modules() if module is backbone)
        with torch.no_grad():
            for layer, down, up in self.layers(apart.get_submodule(path)):
                weight = self.changed(cast("Tensor", layer.weight), down, up)
                layer.weight = nn.Parameter(weight, requires_grad=False)
        return apart.eval()


def _state(weight: Tensor) -> tuple[Any, ...]:
    version = None
    with suppress(RuntimeError):  # a tensor of inference mode has none, because nothing may change it
        version = weight._version
    return weight.data_ptr(), version, weight.dtype, weight.device
