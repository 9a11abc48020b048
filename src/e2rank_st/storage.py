"""Paths and contents: files that are written whole or not at all, and hashes that identify contents.

A file or folder is first written beside its target, and then takes its place in one step. A crash, a kill and a full
disk leave the old one. A reader finds either the old one or the new one. Where the system cannot swap two folders, a
reader may find none for a moment.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

if sys.platform != "win32":  # there, writers do not lock each other out
    import fcntl

__all__ = [
    "file_sha256", "folder_sha256", "read_json", "replacing", "text_id", "write_errors", "write_json", "write_text",
]  # fmt: skip

BLOCK = 2**20  # bytes of a file in memory while it is hashed
PATIENCE = 10.0  # seconds that a writer waits for another one of the same target
EXCHANGE = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS
LOCK = "lock"
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, and replace ``target`` with the result if the block succeeds.

    The new one is written in a hidden scratch folder beside the target, because a rename is atomic only within one file
    system. A lock in it keeps other writers of the target out, and ends with its process. The scratch folder of a
    writer that was killed is deleted by the next writer of the same target.

    The result has the permissions that the user's umask gives. It is on the disk before it takes the target's place:
    otherwise, a power failure could leave an empty file under the new name.

    Args:
        target: File or folder to create or replace. A device such as ``/dev/null`` is written directly.

    Yields:
        The path for the new file or folder.

    Raises:
        OSError: The target cannot be written, or it is a folder and the block wrote a file.
        TimeoutError: Another process or thread writes the target.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not (target.is_file() or target.is_dir()):
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target) as scratch:
        # A name of its own: on a file system without locks, two writers use the scratch folder at once.
        work = scratch / secrets.token_hex(4)
        try:
            work.mkdir()
            fresh = work / "new"
            yield fresh
            _settle(fresh, work.stat().st_mode)
            _put(fresh, target)
            _sync(target.parent)
        finally:
            _clear(work, target)


@contextmanager
def write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the errors of safetensors and torch about a full disk into OSError, as Python's own files raise it.

    Args:
        path: The file or folder that the block writes, for the message.

    Raises:
        OSError: The block could not write.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        # torch.save does not have an exception of its own. Its messages name one of these.
        if isinstance(error, RuntimeError) and not any(
            part in str(error) for part in ("inline_container", "PytorchStreamWriter")
        ):
            raise
        raise OSError(f"Could not write {path}: {error}. Is the disk full?") from error


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
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # also of an integer of thousands of digits
        raise ValueError(f"{path.name} is not valid JSON: {error}. Write it again.") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


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


@contextmanager
def _locked(target: Path) -> Iterator[Path]:
    """Give the scratch folder of a target to one writer at a time, without what dead writers left in it."""
    # A part of the name: a long one would leave no space for the rest.
    scratch = target.with_name(f".{target.name[:40]}-{text_id(target.name):016x}.partial")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            lock = _lock(scratch)
            break
        except (BlockingIOError, FileNotFoundError):  # held, or the holder has just deleted the folder
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"Another process or thread writes {target}; wait for it, or give a different place."
                ) from None
            time.sleep(0.02)
    try:
        if lock is not None:  # only the lock shows that the other writers are dead
            for left in [path for path in scratch.iterdir() if path.name != LOCK]:
                _clear(left, target)
        yield scratch
    finally:
        with suppress(OSError):  # a folder that is not empty holds another writer's files, or the only version
            if lock is not None:
                (scratch / LOCK).unlink()
            scratch.rmdir()
        if lock is not None:
            lock.close()


def _lock(scratch: Path) -> IO[bytes] | None:
    """Make the scratch folder and lock it.

    Returns:
        The open lock file; None if the file system does not have locks.

    Raises:
        BlockingIOError: Another writer holds the lock.
        PermissionError: Somebody else made the folder, and could change the files in it.
    """
    with suppress(FileExistsError):
        scratch.mkdir()
    if sys.platform == "win32":
        return None
    found = scratch.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{scratch} is not a folder of this user, who would write there; delete it.")
    # A file, because network file systems do not lock folders.
    lock = (scratch / LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock.fileno()), (scratch / LOCK).stat()):
            return lock
        raise BlockingIOError  # the writer before has deleted the file, and a third one may have made another
    except OSError as error:
        lock.close()
        if error.errno not in UNSUPPORTED:
            raise
    (scratch / LOCK).unlink(missing_ok=True)
    return None


def _put(fresh: Path, target: Path) -> None:
    """Move what was written to its target. A rename replaces anything but a folder that is not empty."""
    if not (fresh.is_dir() and target.is_dir()):
        fresh.replace(target)
    elif not _exchange(fresh, target):
        target.rename(fresh.with_name("old"))  # _clear puts it back if the next step fails
        fresh.rename(target)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False if the system cannot."""
    if os.name != "posix":
        return False
    name = "renameatx_np" if sys.platform == "darwin" else "renameat2"
    swap = getattr(ctypes.CDLL(None), name, None)  # Python does not offer it
    return swap is not None and swap(-1, os.fsencode(one), -1, os.fsencode(other), EXCHANGE) == 0


def _clear(work: Path, target: Path) -> None:
    """Delete a writer's files. If it died between two renames, the old folder goes back first."""
    if (work / "old").exists() and not os.path.lexists(target):
        (work / "old").rename(target)
    shutil.rmtree(work, ignore_errors=True)


def _settle(path: Path, usual: int) -> None:
    """Give files and folders at least the permissions of ``usual``, a new folder's mode, and write them to the disk.

    safetensors makes its files private.
    """
    for part in [path, *path.rglob("*")]:
        if part.is_symlink():
            continue
        mode = stat.S_IMODE(part.stat().st_mode)
        wanted = mode | stat.S_IMODE(usual) & (0o777 if part.is_dir() else 0o666)
        if wanted != mode:
            part.chmod(wanted)
        _sync(part)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_file():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    else:
        with suppress(OSError):  # not every system can do this for a folder
            folder = os.open(path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
