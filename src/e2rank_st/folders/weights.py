"""A file of weights → its tensors; a damaged file is a ValueError that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

__all__ = ["open_weights"]


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Open a safetensors file. Only its header is read until a tensor is asked for.

    Args:
        path: The file.

    Yields:
        The file, with ``keys`` and ``get_tensor``.

    Raises:
        ValueError: The file is not safetensors, or not complete.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a complete safetensors file: {error}. Copy or save it again.") from error
