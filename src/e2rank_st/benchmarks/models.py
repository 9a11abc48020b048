"""A model's name → the model, its name in results, and its state; with the vectors that it made last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import CrossEncoder

from e2rank_st.bundled import BASE, BUNDLED
from e2rank_st.checkpoints import check_name
from e2rank_st.loading import load_model
from e2rank_st.model import E2Rank
from e2rank_st.provenance import model_digest
from e2rank_st.search.kept import kept_vectors
from e2rank_st.search.texts import TextVectors

__all__ = ["Subject", "listwise_configuration", "load", "load_cross_encoder", "state"]


@dataclass
class Subject:
    """A model that is evaluated.

    Attributes:
        model: An E2Rank model or a cross-encoder.
        name: ``organisation/name``.
        revision: The commit of a Hub repository, or else a hash of the model.
        index: The texts that :meth:`embed` was given last, with their vectors.
        vectors: Where vectors are kept, see :func:`~e2rank_st.search.kept.kept_vectors`; None keeps none.
    """

    model: Any
    name: str
    revision: str
    index: TextVectors | None = None
    vectors: Path | None = None

    def describe(self) -> dict[str, Any]:
        """The model's part of a result: never a path."""
        return {
            "name": self.name,
            "revision": self.revision,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "prompts": dict(getattr(self.model, "prompts", {})),
        }

    def embed(self, texts: Sequence[str], batch_size: int = 32, show_progress_bar: bool = False) -> TextVectors:
        """Embed documents; the same ones as before are not embedded again, as the splits of a corpus have the same."""
        if self.index is None or self.index.texts != list(texts):
            options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
            if self.vectors is None:
                self.index = TextVectors.build(self.model, texts, **options)
            else:
                kept = kept_vectors(self.model, texts, self.vectors, name=self.name, **options)
                self.index = TextVectors(list(texts), kept.vectors(texts))
        return self.index


def load(
    source: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "saved",
    vectors: Path | None = None,
) -> Subject:
    """Load an E2Rank model from a folder or the Hub, or a bundled one.

    Its name in results is by default the Hub id, or ``local/`` and the folder's name. The revision is the commit to
    load from the Hub; for other sources, the name of this state in results. The type of the weights is by default the
    checkpoint's own, as for :class:`~e2rank_st.model.E2Rank`.

    Raises:
        ValueError: The source is neither a folder nor a Hub id.
        OSError: The model cannot be loaded.
        ImportError: The weights are not installed and the Hub cannot be reached.
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    folder = Path(source)
    if source in BUNDLED:
        default = f"e2rank-st/{BUNDLED[source].name}"
    elif source == BASE:
        default = BUNDLED["bundled"].base
    elif folder.is_dir():
        default = f"local/{folder.resolve().name}"
    else:
        # Sentence-Transformers adds its own organisation to a bare name.
        default, options["revision"] = source if "/" in source else f"sentence-transformers/{source}", revision
    model = load_model(source, **options)
    # Not for a folder: it may have been trained further since it came from there.
    commit = None if folder.is_dir() else getattr(model.config, "_commit_hash", None)
    return Subject(model, name or default, commit or revision or state(model), vectors=vectors)


def load_cross_encoder(source: str, device: str | None = None) -> Subject:
    """Load a cross-encoder from a folder or the Hub.

    Raises:
        ValueError: The source is neither a folder nor a Hub id.
        OSError: The model cannot be loaded.
    """
    check_name(source)
    folder = Path(source)
    model: CrossEncoder = CrossEncoder(source, device=device, model_kwargs={"weights_only": True})
    name = f"local/{folder.resolve().name}" if folder.is_dir() else source
    commit = None if folder.is_dir() else getattr(model.config, "_commit_hash", None)
    return Subject(model, name, commit or f"weights-{model_digest(model).hexdigest()[:12]}")


def listwise_configuration(model: E2Rank) -> dict[str, Any]:
    """How a model is configured to rerank."""
    return {name: getattr(model.listwise, name) for name in model.listwise.config_keys}


def state(model: E2Rank) -> str:
    """Hash everything that a model's results depend on: weights, prompts, lengths, reranking configuration.

    Two configurations of the same weights must not pass for one: the results of one would be taken for the other's.
    """
    parts = json.dumps([model_digest(model).hexdigest(), listwise_configuration(model)], sort_keys=True)
    return f"state-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"
