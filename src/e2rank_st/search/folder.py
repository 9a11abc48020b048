"""Texts with vectors ↔ their folder: a manifest, the vectors, and the texts as JSON lines.

The manifest holds a hash of each file, and of itself. A single wrong bit is therefore found, and so is a folder that is
replaced while it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from e2rank_st.search.vectors import Matrix
from e2rank_st.storage import file_sha256, replacing, write_errors

__all__ = ["read_vectors", "write_vectors"]

FORMAT = 2
MANIFEST, VECTORS, TEXTS = "index.json", "embeddings.safetensors", "texts.jsonl"


def write_vectors(folder: str | os.PathLike[str], texts: Sequence[str], embeddings: Matrix) -> None:
    """Write the parts of an index, whole or not at all.

    Args:
        folder: A new or empty folder, or the folder of an index, which is replaced.
        texts: The N documents.
        embeddings: Their vectors, (N, D).

    Raises:
        ValueError: The folder holds other files.
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    names = {path.name for path in folder.glob("*")}
    others = sorted(names - {MANIFEST, VECTORS, TEXTS} if MANIFEST in names else names)
    if others:
        raise ValueError(f"{folder} holds other files ({others[0]}, ...); give a new folder or an index's folder.")
    with replacing(folder) as fresh, write_errors(folder):
        fresh.mkdir()
        save_file({"embeddings": embeddings}, fresh / VECTORS)
        with (fresh / TEXTS).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(text) + "\n" for text in texts)
        hashes = {name: file_sha256(fresh / name) for name in (VECTORS, TEXTS)}
        manifest = {"format": FORMAT, "documents": len(texts), "dimension": embeddings.shape[1], "sha256": hashes}
        (fresh / MANIFEST).write_bytes(_signed(manifest))


def read_vectors(folder: str | os.PathLike[str]) -> tuple[list[str], Matrix]:
    """Read the parts of an index, all of one version, also while the folder is being replaced.

    Returns:
        Texts and vectors.

    Raises:
        FileNotFoundError: A file of the index is missing.
        ValueError: A file is damaged, or an earlier version wrote the index.
    """
    folder = Path(folder)
    while True:
        before = _identity(folder)
        try:
            found = _read(folder)
        except (OSError, ValueError, SafetensorError):
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return found


def _read(folder: Path) -> tuple[list[str], Matrix]:
    manifest = _manifest(folder)
    for name, expected in manifest["sha256"].items():
        if file_sha256(folder / name) != expected:
            raise ValueError(f"The index in {folder} is damaged ({name} has changed); build and save it again.")
    with (folder / TEXTS).open(encoding="utf-8", newline="\n") as file:
        texts = [json.loads(line) for line in file]
    return texts, load_file(folder / VECTORS)["embeddings"]


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Distinguish a folder from its successor of the same name."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest, if it is exactly what :func:`write_vectors` wrote."""
    written = (folder / MANIFEST).read_bytes()
    try:
        manifest: Any = json.loads(written)
    except (ValueError, RecursionError):
        manifest = None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version is not None and (type(version) is not int or version != FORMAT):
        raise ValueError(
            f"The index in {folder} has the format {version}, and this version reads {FORMAT}; build and save it again."
        )
    if version is None or manifest.pop("manifest_sha256", None) is None or _signed(manifest) != written:
        raise ValueError(f"The index in {folder} is damaged ({MANIFEST} has changed); build and save it again.")
    assert isinstance(manifest, dict)
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or hashes.keys() != {VECTORS, TEXTS}:
        raise ValueError(f"The index in {folder} has a {MANIFEST} of an unknown form; build and save it again.")
    return manifest


def _signed(manifest: dict[str, Any]) -> bytes:
    """Write a manifest with its own hash: the same values always give the same bytes."""
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return (json.dumps({**manifest, "manifest_sha256": digest}, indent=2) + "\n").encode()
