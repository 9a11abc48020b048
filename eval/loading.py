"""A model's name on the command line → the model, what results call it, and which state of it this is."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import fingerprint

from e2rank_st import E2Rank
from e2rank_st.model import BUNDLED_PACKAGE, BUNDLED_REPOSITORY

__all__ = ["BASE", "BUNDLED", "Subject", "load"]

BUNDLED, BASE = "bundled", "bundled-base"


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        model: The model.
        name: ``organisation/name``.
        revision: The commit of a Hub repository, or a hash of the files that were loaded.
    """

    model: E2Rank
    name: str
    revision: str


def load(source: str, *, name: str | None = None, revision: str | None = None, **options: Any) -> Subject:
    """Load a model.

    Args:
        source: A folder, a Hub id, ``bundled``, or ``bundled-base`` for what that one was trained from.
        name: What results call it; by default the Hub id, or ``local/`` and the folder's name.
        revision: The commit to load from the Hub; for a folder, what results call its state.
        **options: Arguments of ``E2Rank``.

    Raises:
        ValueError: The Hub does not say which commit was loaded.
        OSError: The model cannot be loaded.
    """
    base = _base()
    if source == BUNDLED:
        model = E2Rank.from_bundled(**options)
        return Subject(model, name or "e2rank-st/bundled", revision or _state(model))
    if source == BASE:
        model, default = E2Rank.from_checkpoint(base, preset="minilm", **options), BUNDLED_REPOSITORY
    elif Path(source).is_dir():
        model, default = E2Rank(source, **options), f"local/{Path(source).resolve().name}"
    else:
        model, default = E2Rank(source, revision=revision, **options), source
    path = Path(base if source == BASE else source)
    revision = revision or (fingerprint(path) if path.is_dir() else _commit(model, source))
    return Subject(model, name or default, revision)


def _base() -> str:
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    return str(Path(spec.origin).parent / "model") if spec and spec.origin else BUNDLED_REPOSITORY


def _state(model: E2Rank) -> str:
    """A revision for a model that is made of several sources: equal for the same weights in the same type."""
    digest = hashlib.sha256(json.dumps(model.listwise.get_config_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"sha256-{digest.hexdigest()[:12]}"


def _commit(model: E2Rank, source: str) -> str:
    commit = getattr(model.transformers_model.config, "_commit_hash", None)
    if not commit:
        raise ValueError(f"It is not known which commit of {source} was loaded; name it with --revision.")
    return str(commit)
