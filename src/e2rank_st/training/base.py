"""Settings → the model to train: loaded, with the changes that the settings make, and with an adapter."""

from __future__ import annotations

from typing import Any

from torch import nn

from e2rank_st.model import E2Rank, load_model
from e2rank_st.training.settings import ListwiseSettings, Settings

__all__ = ["adapt", "load_base"]


def load_base(settings: Settings, listwise: ListwiseSettings, device: str) -> E2Rank:
    """Load the model to train, with the changes that the settings make.

    Raises:
        ValueError: A setting does not fit the model.
        OSError: It cannot be loaded.
    """
    model = load_model(
        settings.model,
        preset=settings.preset,
        revision=settings.revision,
        merge=False,
        device=device,
        model_kwargs={"dtype": settings.dtype},
    )
    model.untrained = False  # it is about to be trained
    if settings.max_seq_length is not None:
        model.max_seq_length = settings.max_seq_length
    if settings.query_prompt is not None:
        model.prompts["query"] = settings.query_prompt
    model.replace_listwise(**listwise.changes())
    if settings.dropout is not None:
        _set_dropout(model, settings.dropout)
    return model


def _set_dropout(model: E2Rank, share: float) -> None:
    for module in model.modules():
        for name in ("p",) if isinstance(module, nn.Dropout) else ("attention_dropout",):
            if hasattr(module, name):
                setattr(module, name, share)


def adapt(model: E2Rank, settings: Settings) -> None:
    """Give the model an adapter to train, or go on with its own; without either, train all weights.

    Raises:
        ValueError: A new adapter is wanted and the model has one.
        ImportError: peft is missing.
    """
    has_adapter = any("lora_" in name for name, _ in model.named_parameters())
    if not settings.lora_rank and not has_adapter:
        return
    if has_adapter and settings.lora_rank:
        raise ValueError(
            f"Got lora_rank={settings.lora_rank} for a model that has an adapter already; leave lora_rank out to train "
            "that adapter, or merge it."
        )
    if not has_adapter:
        model.add_adapter(_lora(settings))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small updates would be lost in bfloat16


def _lora(settings: Settings) -> Any:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("Adapters need peft: pip install 'e2rank-st[train]'") from error
    return LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_targets or "all-linear",
    )
