"""A default and a help text → a field of a dataclass of settings; its text → a mapping."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import field
from typing import Any

__all__ = ["mapping", "setting"]


def setting(default: Any, text: str) -> Any:
    """Make a field whose help text ``e2rank train --help`` shows."""
    return field(default=default, metadata={"help": text})


def mapping(name: str, value: Any) -> dict[str, Any] | None:
    """Read a setting that is a mapping in a YAML file, and JSON as a flag; None stays None.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str):
        with suppress(ValueError):  # it is refused below
            value = json.loads(value)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} must be a mapping, or as a flag a JSON object; got {value!r:.80}.")
    return value
