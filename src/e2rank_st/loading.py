"""The name of a model on a command line → the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2rank_st.adapter_e2rank import ADAPTER_CONFIG
from e2rank_st.bundled import NAMES
from e2rank_st.checkpoints import check_name, name_of_model
from e2rank_st.model import E2Rank
from e2rank_st.wiring import check_device

__all__ = ["load_model"]


def load_model(
    name: str, *, preset: str | None = None, revision: str | None = None, merge: bool = True, **kwargs: Any
) -> E2Rank:
    """Load a model by a name from a command line.

    Args:
        name: A bundled model (:meth:`E2Rank.from_bundled`), a folder (also one with an adapter), or a Hub id.
        preset: As for :class:`E2Rank`.
        revision: Branch, tag or commit of a model on the Hub.
        merge: Whether to merge the adapter of a folder into its base. A separate adapter can be trained further.
        **kwargs: As for :class:`E2Rank`.

    Raises:
        ValueError: The name is neither a folder nor a Hub id, the device does not work, the model cannot rerank, or its
            adapter cannot be merged.
        OSError: The model cannot be loaded.
        ImportError: The bundled model's weights are not installed, and the Hub is not reachable.
    """
    name = name_of_model(name)
    check_name(name)
    check_device(kwargs.get("device"))
    has_adapter = (Path(name) / ADAPTER_CONFIG).is_file()
    if (name in NAMES or has_adapter) and (preset or revision):
        got = f"preset={preset!r}" if preset else f"revision={revision!r}"
        raise ValueError(f"Got {got} for {name!r}, whose base and wiring are known; leave it out.")
    if name in NAMES:
        return E2Rank.from_bundled(name, **kwargs)
    if has_adapter:
        return E2Rank.from_adapter(name, merge=merge, **kwargs)
    return E2Rank(name, preset=preset, revision=revision, **kwargs)
