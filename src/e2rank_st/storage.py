"""A path → its new content, whole or not at all.

A file or folder is first written beside its target and then renamed over it, so that neither a crash nor a full disk
leaves half of one behind, and whoever reads meanwhile sees the old one or the new one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["replacing"]


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, and put what was written in the place of ``target`` when the block ends well.

    The scratch folder is a sibling of the target, since a rename is atomic only within one file system. It also leaves
    the new file's permissions to the user's umask, where a named temporary file would be private.

    Args:
        target: File or folder to create or replace. A device such as ``/dev/null`` is written to directly.

    Yields:
        The path to write the file, or create the folder, at.

    Raises:
        OSError: The target cannot be written, or is a folder where a file was written.
    """
    target = Path(target).resolve()
    if target.exists() and not (target.is_file() or target.is_dir()):
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        fresh = Path(scratch, "new")
        yield fresh
        if fresh.is_dir() and target.is_dir():  # a rename replaces no folder that holds something
            target.rename(Path(scratch, "old"))
        fresh.replace(target)
