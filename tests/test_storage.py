"""Replacing: a file or folder is written whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from e2rank_st.storage import folder_sha256, replacing
from tests.beir import write_collection


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
