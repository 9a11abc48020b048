"""The models that a run compares: loaded, named, and told about the task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentence_transformers import CrossEncoder

from e2rank_st.benchmarks.instructions import instruction_template
from e2rank_st.benchmarks.loading import HUB_ID, load
from e2rank_st.model import E2Rank
from e2rank_st.training.datasets import fingerprint

__all__ = ["instructed", "load_cross_encoder", "load_encoder"]


def load_encoder(source: str, device: str | None = None, dtype: str = "float32") -> tuple[E2Rank, dict[str, Any]]:
    """Load an E2Rank model.

    Args:
        source: See :func:`loading.load`.
        device: Where it runs; by default the best there is.
        dtype: ``float32`` or ``bfloat16``.

    Returns:
        The model, and what a result says of it: never a path.

    Raises:
        ValueError: The source is no model's name.
        OSError: The model cannot be loaded.
        ImportError: The weights are not installed and the Hub cannot be reached.
    """
    subject = load(source, device=device, model_kwargs={"dtype": dtype})
    return subject.model, _described(subject.model, subject.name, subject.revision)


def load_cross_encoder(source: str, device: str | None = None) -> tuple[CrossEncoder, dict[str, Any]]:
    """Load a cross-encoder from a folder or the Hub.

    Returns:
        The model, and what a result says of it.

    Raises:
        ValueError: The source is no folder and no Hub id.
        OSError: The model cannot be loaded.
    """
    is_folder = Path(source).is_dir()
    if not is_folder and not HUB_ID.fullmatch(source):
        raise ValueError(f"Got the cross-encoder {source!r}, which is no folder here and no Hub id (org/name).")
    model: CrossEncoder = CrossEncoder(source, device=device)
    name = f"local/{Path(source).resolve().name}" if is_folder else source
    commit = None if is_folder else getattr(model.config, "_commit_hash", None)
    return model, _described(model, name, commit or f"weights-{fingerprint(model, {})[:12]}")


def _described(model: E2Rank | CrossEncoder, name: str, revision: str) -> dict[str, Any]:
    return {
        "name": name,
        "revision": revision,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


@contextmanager
def instructed(model: E2Rank, instruction: str | None) -> Iterator[str]:
    """Put a task's retrieval instruction into the query prompt of a model, if that has a place for one.

    Yields:
        The prompt.
    """
    before = model.prompts.get("query") or ""
    template = instruction_template(before)
    if instruction is not None and template is not None:
        model.prompts["query"] = template.replace("{instruction}", instruction)
    try:
        yield model.prompts.get("query") or ""
    finally:
        if before:
            model.prompts["query"] = before
