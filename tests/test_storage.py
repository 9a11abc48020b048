"""Replacing: a file or folder is written whole or not at all."""

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import e2rank_st.storage as storage
from e2rank_st.storage import folder_sha256, replacing, write_errors, write_text
from tests.beir import write_collection
from tests.toy import small_disk

WRITER = """
import sys
from e2rank_st.storage import replacing
with replacing(sys.argv[1]) as fresh:
    fresh.mkdir()
    (fresh / "0").write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def write_folder(target: Path, text: str) -> None:
    with replacing(target) as fresh:
        fresh.mkdir()
        for name in "01":
            (fresh / name).write_text(text)


def read_folder(target: Path) -> set[str]:
    return {(target / name).read_text() for name in "01"}


@contextlib.contextmanager
def raised_at(number: int) -> Iterator[list[int]]:
    """Raise an exception before the given line that the module runs; the list has the lines so far."""
    lines = [0]

    def trace(frame: Any, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != storage.__file__:
            return None
        lines[0] += event == "line"
        if event == "line" and lines[0] == number:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def other_writer(target: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of its block."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(target)], **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_files_and_folders_are_created_and_replaced(tmp_path: Path):
    """Guards against a writer that needs the folder beforehand, and scratch or old files that live on."""
    target = tmp_path / "new" / "file"
    for content in ("one", "two"):
        with replacing(target) as fresh:
            fresh.write_text(content)
        assert target.read_text() == content
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    target = tmp_path / "folder"
    for name in ("old", "new"):
        with replacing(target) as fresh:
            fresh.mkdir()
            (fresh / name).touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert {path.name for path in tmp_path.iterdir()} == {"new", "folder"}


def test_failure_leaves_the_old_one(tmp_path: Path):
    """Guards against half a file after a crash or on a full disk."""
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(target) as fresh:
        fresh.write_text("half")
        raise OSError("disk full")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folder_is_no_target_for_a_file(tmp_path: Path):
    """Guards against a folder of the user's that is deleted because its name was given for a file."""
    target = tmp_path / "folder"
    target.mkdir()
    (target / "precious").touch()
    with pytest.raises(OSError), replacing(target) as fresh:
        fresh.write_text("text")
    assert (target / "precious").exists()


def test_symbolic_link_stays_one(tmp_path: Path):
    """Guards against a link that turns into a file while its target goes stale."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "link") as fresh:
        fresh.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_device_is_written_to(tmp_path: Path):
    """Guards against /dev/null that becomes a file where root runs the command."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as fresh:
        fresh.write_text("text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_permissions_are_the_users(tmp_path: Path):
    """Guards against files that only their owner can read, as temporary files are."""
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "file") as fresh:
        fresh.touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_folders_are_told_apart(tmp_path: Path):
    """Guards against other data under the same revision."""
    first, second = (write_collection(tmp_path / name, seed=0) for name in "ab")
    assert folder_sha256(first) == folder_sha256(second) != folder_sha256(write_collection(tmp_path / "c", seed=1))
    (second / "README.md").write_text("another text", encoding="utf-8")
    assert folder_sha256(first) == folder_sha256(second)


@pytest.mark.parametrize("exchanges", [True, False])
def test_an_exception_at_any_line_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool):
    """Guards against an interrupt between two steps that deletes the old and the new, and scratch that stays."""
    if not exchanges:
        monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    monkeypatch.setattr(storage, "PATIENCE", 1)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # it only takes time here
    target, number, done = tmp_path / "folder", 0, False
    while not done:
        number += 1
        write_folder(target, "old")
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]
        with contextlib.suppress(KeyboardInterrupt), raised_at(number) as lines:
            write_folder(target, "new")
            done = lines[0] < number
        assert read_folder(target) in ({"old"}, {"new"})
    assert number > 60


def test_error_of_each_rename_is_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a second rename that fails after the first one took the old folder away."""
    target = tmp_path / "folder"
    write_folder(target, "old")
    monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    rename = Path.rename
    for failing in ("folder", "new"):

        def refuse(path: Path, to: Path, failing: str = failing) -> Path:
            if path.name == failing:
                raise OSError(errno.EIO, "broken disk", str(path))
            return rename(path, to)

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="broken disk"):
            write_folder(target, "new")
        assert read_folder(target) == {"old"}
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may lack the swap")
def test_folders_are_swapped_in_one_step(tmp_path: Path):
    """Guards against a moment without a folder, on the system where the swap is known to work."""
    for name in ("one", "two"):
        write_folder(tmp_path / name, name)
    assert storage._exchange(tmp_path / "one", tmp_path / "two")
    assert (read_folder(tmp_path / "one"), read_folder(tmp_path / "two")) == ({"two"}, {"one"})


@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_writer_leaves_the_old_one(tmp_path: Path, ends: signal.Signals):
    """Guards against half a folder, a lock for ever, and scratch folders that nobody deletes."""
    target = tmp_path / "folder"
    write_folder(target, "old")
    with other_writer(target) as process:
        process.send_signal(ends)
        process.wait()
    assert read_folder(target) == {"old"}
    assert len(list(tmp_path.iterdir())) == 2, "the premise: it left something"
    write_folder(target, "new")
    assert read_folder(target) == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_writer_that_died_between_two_renames_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against the cleaning of a scratch folder that holds the only version."""
    target = tmp_path / "folder"
    write_folder(target, "old")
    monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    rename = Path.rename

    def die(path: Path, to: Path) -> Path:
        if path == target:
            return rename(path, to)
        raise OSError(errno.EIO, "killed")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_clear", lambda work, target: None)
        patch.setattr(Path, "rename", die)
        with pytest.raises(OSError, match="killed"):
            write_folder(target, "new")
    assert not target.exists(), "the premise"
    with pytest.raises(ZeroDivisionError), replacing(target):
        raise ZeroDivisionError
    assert read_folder(target) == {"old"}


def test_one_writer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against two writers that delete each other's files, and against one that waits for ever."""
    target = tmp_path / "folder"
    with other_writer(target) as process:
        monkeypatch.setattr(storage, "PATIENCE", 0)
        with pytest.raises(TimeoutError, match=r"Another process or thread writes .*folder;"):
            write_folder(target, "mine")
        write_folder(tmp_path / "other", "mine")
        monkeypatch.setattr(storage, "PATIENCE", 60)
        waiting = threading.Thread(target=write_folder, args=(target, "mine"))
        waiting.start()
        process.communicate()  # its block ends well
        waiting.join()
    assert read_folder(target) == {"mine"}
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "other"}


def test_many_writers_of_one_target(tmp_path: Path):
    """Guards against a lock file that is deleted while another writer waits for it."""
    target = tmp_path / "folder"
    errors: list[Exception] = []

    def write(name: str) -> None:
        try:
            for _ in range(10):
                write_folder(target, name)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(read_folder(target)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_nested_use(tmp_path: Path):
    """Guards against two targets in one statement that share a scratch folder, also with names that start alike."""
    names = ["x" * 250, "x" * 249]
    with replacing(tmp_path / names[0]) as one, replacing(tmp_path / names[1]) as two:
        one.write_text("1")
        two.write_text("2")
    assert [(tmp_path / name).read_text() for name in names] == ["1", "2"]


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a cluster's file system where nothing could be written, or where writers delete each other's."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as two:
        one.write_text("1")
        two.write_text("2")
    assert (tmp_path / "file").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_prepared_scratch_folder_is_refused(tmp_path: Path):
    """Guards against a link that somebody put where the scratch folder will be, in a folder that all may write to."""
    with replacing(tmp_path / "file") as fresh:
        scratch = fresh.parents[1]
        fresh.touch()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").touch()
    scratch.symlink_to(tmp_path / "precious")
    with pytest.raises(PermissionError, match="delete it"):
        write_text(tmp_path / "file", "text")
    assert (tmp_path / "precious" / "data").exists()


def test_permissions_of_weights_and_folders(tmp_path: Path):
    """Guards against weights that only their owner can read, and against more than the umask allows."""
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "folder") as fresh:
            Path(tempfile.mkdtemp(dir=tmp_path)).rename(fresh)
            save_file({"a": np.zeros(3)}, fresh / "weights.safetensors")
            (fresh / "script").touch(0o777)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "folder", *tmp_path.rglob("*/*"))}
    assert modes == {"folder": 0o750, "weights.safetensors": 0o640, "script": 0o750}


def test_folder_behind_a_link(tmp_path: Path):
    """Guards against a link to a folder that is replaced itself."""
    write_folder(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write_folder(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and read_folder(tmp_path / "real") == {"new"}


@pytest.mark.parametrize("read_only", ["folder", "."])
def test_read_only_folders(read_only: str):
    """Guards against a folder that is lost because the user may not move or replace it."""
    with tempfile.TemporaryDirectory() as parent:
        target, user = Path(parent, "folder"), os.geteuid()
        write_folder(target, "old")
        for path in (Path(parent), target):
            os.chown(path, 65534 if user == 0 else user, -1)
        Path(parent, read_only).chmod(0o555)
        if user == 0:  # nothing is read-only for root
            os.seteuid(65534)
        try:
            with pytest.raises(OSError):
                write_folder(target, "new")
        finally:
            os.seteuid(user)
        assert read_folder(target) == {"old"}
        assert [path.name for path in Path(parent).iterdir()] == ["folder"]
        Path(parent, read_only).chmod(0o755)


def test_full_disk_is_an_error_of_the_system(tmp_path: Path):
    """Guards against tracebacks of safetensors and torch, which have errors of their own, and against half a file."""
    write_text(tmp_path / "file", "old")
    array = np.zeros(200_000)
    writers = (
        lambda path: save_file({"a": array}, path),
        lambda path: torch.save(torch.from_numpy(array), path),
        lambda path: path.write_bytes(array.tobytes()),
    )
    for write in writers:
        target = tmp_path / "file"
        with pytest.raises(OSError) as caught, small_disk(100_000), replacing(target) as fresh, write_errors(target):
            write(fresh)
        assert "\n" not in str(caught.value)
        assert (tmp_path / "file").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(RuntimeError, match="shape"), write_errors("file"):
        raise RuntimeError("a shape is wrong")
