"""A model's name on the command line → the model, what results call it, and which state of it this is."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from e2rank_st.adapters import BUNDLED_NAME, BUNDLED_REPOSITORY
from e2rank_st.model import BUNDLED_MODELS, E2Rank, load_model
from e2rank_st.training.datasets import fingerprint

__all__ = ["BASE", "BUNDLED", "Subject", "listwise_configuration", "load", "state"]

BUNDLED, BASE = "bundled", "bundled-base"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Subject(NamedTuple):
    """What is evaluated.

    Attributes:
        model: The model.
        name: ``organisation/name``.
        revision: The commit of a Hub repository, else :func:`state`.
    """

    model: E2Rank
    name: str
    revision: str


def load(source: str, *, name: str | None = None, revision: str | None = None, **options: Any) -> Subject:
    """Load a model.

    Args:
        source: A folder, a Hub id, ``bundled``, or ``bundled-base`` for what that one was trained from.
        name: What results call it; by default the Hub id, or ``local/`` and the folder's name.
        revision: The commit to load from the Hub; for other sources, what results call this state.
        **options: Arguments of ``E2Rank``.

    Raises:
        ValueError: The source is no folder and no Hub id.
        OSError: The model cannot be loaded.
    """
    if source in BUNDLED_MODELS:
        default = f"e2rank-st/{BUNDLED_NAME}" if source == BUNDLED else BUNDLED_REPOSITORY
        model = load_model(source, **options)
    elif source and Path(source).is_dir():
        model, default = load_model(source, **options), f"local/{Path(source).resolve().name}"
    elif HUB_ID.fullmatch(source):
        model, default = E2Rank(source, revision=revision, **options), source
    else:
        raise ValueError(f"Got the model {source!r}, which is no folder here and no Hub id (org/name).")
    # Not for a folder: it may have been trained further since it came from there.
    commit = None if Path(source).is_dir() else getattr(model.config, "_commit_hash", None)
    return Subject(model, name or default, commit or revision or state(model))


def listwise_configuration(model: E2Rank) -> dict[str, Any]:
    """How a model is configured to rerank."""
    return {name: getattr(model.listwise, name) for name in model.listwise.config_keys}


def state(model: E2Rank) -> str:
    """Name what a model's results depend on: weights, prompts, lengths, and how it reranks.

    Two configurations of the same weights must not pass for one: the results of one would be taken for the other's.
    """
    parts = json.dumps([fingerprint(model, {}), listwise_configuration(model)], sort_keys=True)
    return f"state-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"
