"""Paths and contents: files that are written whole or not at all, and hashes that identify contents.

A file or folder is first written beside its target, and then renamed over it. Neither a crash nor a full disk leaves
half of it behind. A reader sees either the old one or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = ["file_sha256", "folder_sha256", "read_json", "replacing", "text_id", "write_json", "write_text"]

BLOCK = 2**20  # bytes of a file in memory while it is hashed


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, and replace ``target`` with the result if the block succeeds.

    The scratch folder is a sibling of the target, because a rename is atomic only within one file system. In it, the
    user's umask sets the new file's permissions; a named temporary file would be private.

    Args:
        target: File or folder to create or replace. A device such as ``/dev/null`` is written directly.

    Yields:
        The path for the new file or folder.

    Raises:
        OSError: The target cannot be written, or it is a folder and the block wrote a file.
    """
    target = Path(target).resolve()
    if target.exists() and not (target.is_file() or target.is_dir()):
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        fresh = Path(scratch, "new")
        yield fresh
        if fresh.is_dir() and target.is_dir():  # a rename cannot replace a folder that is not empty
            target.rename(Path(scratch, "old"))
        fresh.replace(target)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 2) -> None:
    """Write a value as JSON, whole or not at all.

    Raises:
        ValueError: The value holds NaN or infinity, which JSON lacks.
        TypeError: JSON cannot express the value.
    """
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: The file is not valid JSON; the message names it.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not valid JSON: {error}. Write it again.") from error


def file_sha256(path: Path) -> str:
    """Return the hash of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    _feed(digest, path)
    return digest.hexdigest()


def folder_sha256(folder: Path) -> str:
    """Return the hash of a folder's names and contents, without hidden files and texts for people (``.md``)."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and path.suffix != ".md" and not any(part.startswith(".") for part in relative.parts):
            digest.update(f"{relative.as_posix()}\0{path.stat().st_size}\0".encode())
            _feed(digest, path)
    return digest.hexdigest()


def text_id(text: str) -> int:
    """Return a 63-bit hash of a text. It is the same in every process; Python's own hash is not."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _feed(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
