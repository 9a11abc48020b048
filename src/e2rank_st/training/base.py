"""Settings → the model to train: loaded, with the changes that the settings make, and with an adapter."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from sentence_transformers.base.evaluation import SequentialEvaluator
from torch import nn

from e2rank_st.adapter_e2rank import LoraAdapter
from e2rank_st.adapters import trained_adapter
from e2rank_st.loading import load_model
from e2rank_st.model import E2Rank
from e2rank_st.search.kept import kept_vectors
from e2rank_st.search.vectors import distinct
from e2rank_st.training.settings import ListwiseSettings, Settings

__all__ = ["AdapterEvaluator", "adapt", "load_base", "taught"]


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
    if model.listwise.adapter is not None:
        raise ValueError(f"{settings.model} has a prompt adapter, which cannot be trained further. Give its base.")
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


def adapt(model: E2Rank, settings: Settings) -> E2Rank:
    """Give the model an adapter to train, or go on with its own; without either, train all weights.

    Returns:
        The model to train: the same one, or for a prompt adapter a second one that shares the weights of the base.

    Raises:
        ValueError: A new adapter is wanted and the model has one.
        ImportError: peft is missing.
    """
    if settings.prompt_adapter:
        model = _prompt_tower(model)
    has_adapter = any("lora_" in name for name, _ in model.named_parameters())
    if not settings.lora_rank and not has_adapter:
        return model
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
    return model


def _prompt_tower(model: E2Rank) -> E2Rank:
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def taught(trained: E2Rank, base: E2Rank) -> LoraAdapter:
    """Take the prompt adapter as it is now.

    Args:
        trained: The model that is trained, see :func:`adapt`.
        base: The model that the adapter is for.
    """
    backbone: Any = base.transformers_model
    return trained_adapter(trained.transformers_model, backbone.name_or_path, base.commit)


class AdapterEvaluator(SequentialEvaluator):
    """Evaluates the model that users get: the base, with the prompt adapter as it is now.

    Args:
        evaluator: The evaluator, whose parts are :class:`RerankingEvaluator`.
        base: The base.
        vectors: Folder for the base's vectors, which do not change, as in :func:`frozen_vectors`.
    """

    def __init__(self, evaluator: SequentialEvaluator, base: E2Rank, vectors: Path) -> None:
        super().__init__(evaluator.evaluators, evaluator.main_score_function)
        self.base = base
        parts: list[Any] = list(evaluator.evaluators)
        for part in parts:
            documents = kept_vectors(base, distinct(part.documents), vectors, name=part.name)
            part.use(base, documents, kept_vectors(base, part.queries, vectors, "query", name=part.name))

    def __call__(self, model: E2Rank, *args: Any, **kwargs: Any) -> dict[str, float]:  # type: ignore[override]
        """Evaluate; ``model`` is the one that is trained."""
        self.base.listwise.adapter = taught(model, self.base)
        metrics: dict[str, float] = super().__call__(self.base, *args, **kwargs)
        return metrics


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
