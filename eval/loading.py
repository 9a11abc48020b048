"""A model's name on the command line → the model, what results call it, and which state of it this is."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

from e2rank_st.data import fingerprint
from e2rank_st.model import BUNDLED_PACKAGE, BUNDLED_REPOSITORY, E2Rank

__all__ = ["BASE", "BUNDLED", "Subject", "load"]

BUNDLED, BASE = "bundled", "bundled-base"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Subject(NamedTuple):
    """What is evaluated.

    Attributes:
        model: The model.
        name: ``organisation/name``.
        revision: The commit of a Hub repository, else a hash of the weights.
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
    if source == BUNDLED:
        model, default = E2Rank.from_bundled(**options), "e2rank-st/bundled"
    elif source == BASE:
        spec = importlib.util.find_spec(BUNDLED_PACKAGE)
        path = str(Path(spec.origin).parent / "model") if spec and spec.origin else BUNDLED_REPOSITORY
        model, default = E2Rank.from_checkpoint(path, preset="minilm", **options), BUNDLED_REPOSITORY
    elif source and Path(source).is_dir():
        model, default = E2Rank(source, **options), f"local/{Path(source).resolve().name}"
    elif HUB_ID.fullmatch(source):
        model, default = E2Rank(source, revision=revision, **options), source
    else:
        raise ValueError(f"Got the model {source!r}, which is no folder here and no Hub id (org/name).")
    # Not for a folder: it may have been trained further since it came from there.
    commit = None if Path(source).is_dir() else getattr(model.transformers_model.config, "_commit_hash", None)
    return Subject(model, name or default, commit or revision or f"weights-{fingerprint(model, {})[:12]}")
