"""A finished Hub folder → its files with sizes and hashes, each of them allowed and telling nothing private.

An allow-list, because a list of what is forbidden forgets something: a folder that was trained in holds optimizer
states, logs and paths of the machine, and what is once on the Hub stays in its history.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from safetensors import safe_open

from e2rank_st.publishing.inspection import TEXTS, VOCABULARIES, read_json

__all__ = ["File", "check_contents", "describe", "list_files"]

ALLOWED = (
    "README.md", "LICENSE", "config.json", "generation_config.json", "modules.json", "modeling_e2rank.py",
    "sentence_bert_config.json", "config_sentence_transformers.json",
    "model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json",
    "adapter_config.json", "adapter_model.safetensors",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt",
    "1_Pooling/config.json", "2_ListwiseRerank/config.json",
    "*.png", "*.svg", "*.jpg",
)  # fmt: skip
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
HOMES = re.compile(r"(?:/home/|/Users/|/root/|/tmp/|[A-Z]:\\{1,2}Users\\)[\w.-]+")
ABSOLUTE = re.compile(r"(?:/|~/|[A-Za-z]:[\\/])[\w.-]+[\\/].*")
COMMON_NAMES = {"root", "user", "admin", "ubuntu", "runner", "localhost"}  # words that need not mean this machine


@dataclass(frozen=True)
class File:
    """A file to publish.

    Attributes:
        name: Its path in the repository.
        size: In bytes.
        sha256: Hash of its content, as LFS names it.
        blob: Hash of its content as git names it.
    """

    name: str
    size: int
    sha256: str
    blob: str


def list_files(folder: Path) -> list[File]:
    """List a folder's files, sorted by name.

    Args:
        folder: The folder.

    Raises:
        OSError: A file cannot be read.
    """
    return [describe(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]


def check_contents(folder: Path, private: Mapping[str, str]) -> list[File]:
    """Check a finished folder against the allow-list, and its texts for what is nobody's business.

    Args:
        folder: The folder.
        private: Texts that must not occur, such as the source folder's path → what each is.

    Returns:
        Its files.

    Raises:
        ValueError: A file is not allowed, is no valid JSON, or says something private.
    """
    files = list_files(folder)
    for file in files:
        if not any(fnmatchcase(file.name, pattern) for pattern in ALLOWED):
            raise ValueError(f"{file.name} is not on the list of files to publish: {', '.join(ALLOWED)}.")
        path = folder / file.name
        if path.suffix == ".json":
            read_json(path)
        if path.suffix == ".safetensors" or (path.suffix in TEXTS and path.name not in VOCABULARIES):
            _check_text(_text(path), file.name, {**_of_this_machine(), **private})
    return files


def describe(path: Path, folder: Path) -> File:
    """Describe a file.

    Args:
        path: The file.
        folder: The folder that its name is relative to.

    Raises:
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            blob.update(chunk)
    return File(path.relative_to(folder).as_posix(), size, sha256.hexdigest(), blob.hexdigest())


def _of_this_machine() -> dict[str, str]:
    texts = {str(Path.home()): "the home folder", str(Path.cwd()): "the working folder"}
    return {text: what for text, what in texts.items() if len(text) > 1}


def _text(path: Path) -> str:
    if path.suffix == ".safetensors":  # an adapter's is copied as it is, with whatever its writer noted down
        with safe_open(path, framework="pt") as file:
            return json.dumps(file.metadata(), ensure_ascii=False)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is no text in UTF-8: {error}. Write it again.") from error


def _check_text(text: str, name: str, private: Mapping[str, str]) -> None:
    token = get_token()
    if SECRET.search(text) or (token and token in text):
        raise ValueError(f"{name} holds an access token. Remove it, and revoke it if it was ever shared.")
    found = [(word, what) for word, what in private.items() if re.search(re.escape(word) + r"(?![\w-])", text)]
    found += [(match[0], "an absolute path") for match in HOMES.finditer(text)]
    if name.endswith((".json", ".safetensors")):
        found += _private_values(json.loads(text))
    for word, what in found:
        raise ValueError(f"{name} holds {word!r}, {what}. Nobody else has it: name a Hub id, or take it out.")


def _private_values(values: Any) -> list[tuple[str, str]]:
    """What a configuration says of the machine that wrote it; a card may name its author, a configuration need not."""
    users = {_user(): "the user's name", socket.gethostname(): "the machine's name"}
    found = []
    for value in _strings(values):
        if ABSOLUTE.fullmatch(value):
            found.append((value, "an absolute path"))
        found += [(value, what) for word, what in users.items() if word and value == word and word not in COMMON_NAMES]
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that has no name
        return ""


def _strings(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        yield from _strings(value)
