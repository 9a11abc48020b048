"""A default and a help text → a field of a dataclass of settings."""

from __future__ import annotations

from dataclasses import field
from typing import Any

__all__ = ["setting"]


def setting(default: Any, text: str) -> Any:
    """Make a field whose help text ``e2rank train --help`` shows."""
    return field(default=default, metadata={"help": text})
