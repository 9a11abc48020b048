"""Name of a model → the model, and what a result file says about it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentence_transformers import CrossEncoder
from sentence_transformers.base.model import BaseModel

from e2rank_st.data import fingerprint
from e2rank_st.model import BUNDLED_PACKAGE, BUNDLED_REPOSITORY, E2Rank

__all__ = ["BASE", "BUNDLED", "described", "instructed", "load_cross_encoder", "load_model"]

BUNDLED, BASE = "bundled", "base"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# A query prompt that has an instruction: what is before it, and what after.
INSTRUCTED = re.compile(r"(Instruct: ).*?(\nQuery:\s*)", re.DOTALL)


def load_model(name: str, device: str | None = None, dtype: str = "float32") -> E2Rank:
    """Load a model.

    Args:
        name: Folder, Hub id, ``bundled`` for the small model that comes along, or ``base`` for its untrained base.
        device: Where it runs; by default the best there is.
        dtype: ``float32`` or ``bfloat16``.

    Raises:
        ValueError: The name is neither of these, or the model cannot rerank.
        ImportError: The weights are not installed and the Hub cannot be reached.
    """
    options: dict[str, Any] = {"device": device, "model_kwargs": {"dtype": dtype}}
    if name == BUNDLED:
        return E2Rank.from_bundled(**options)
    if name == BASE:
        spec = importlib.util.find_spec(BUNDLED_PACKAGE)
        path = str(Path(spec.origin).parent / "model") if spec and spec.origin else BUNDLED_REPOSITORY
        return E2Rank.from_checkpoint(path, preset="minilm", **options)
    _check(name)
    return E2Rank(name, **options)


def load_cross_encoder(name: str, device: str | None = None) -> CrossEncoder:
    """Load a cross-encoder from a folder or the Hub.

    Raises:
        ValueError: The name is no folder and no Hub id, or the model has several outputs.
    """
    _check(name)
    model: CrossEncoder = CrossEncoder(name, device=device)
    return model


def _check(name: str) -> None:
    if not Path(name).is_dir() and not HUB_ID.fullmatch(name):
        raise ValueError(f"Got the model {name!r}, which is no folder here and no Hub id (org/name).")


def described(name: str, model: BaseModel) -> dict[str, Any]:
    """What a result says of a model: name and revision, and never a path.

    The revision is the Hub's commit where the weights came from there, else a hash of the weights' first values.
    """
    known = {BUNDLED: BUNDLED, BASE: BUNDLED_REPOSITORY}
    shown = known.get(name) or (Path(name).resolve().name if Path(name).is_dir() else name)
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    return {
        "name": shown,
        "revision": commit or f"weights-{fingerprint(model, {})[:12]}",
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
    if instruction is not None and INSTRUCTED.fullmatch(before):
        model.prompts["query"] = INSTRUCTED.sub(lambda found: found[1] + instruction + found[2], before)
    try:
        yield model.prompts.get("query") or ""
    finally:
        if before:
            model.prompts["query"] = before
