"""A finished Hub folder → its files with sizes and hashes, each of them allowed and free of secrets and paths.

An allow-list, because a list of forbidden names forgets something. A folder of a training run holds optimizer states,
logs and paths of the machine, and a file that was once on the Hub stays in its history.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from safetensors import safe_open

from e2rank_st.folders.check import OWN, STOCK, TEXTS, VOCABULARIES
from e2rank_st.modeling_e2rank import SOURCES
from e2rank_st.storage import read_json

__all__ = ["File", "check_contents", "describe"]

ALLOWED = (
    "README.md", "LICENSE", "config.json", "generation_config.json", "modules.json", *SOURCES,
    "sentence_bert_config.json", "config_sentence_transformers.json",
    "model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json",
    "adapter_config.json", "adapter_model.safetensors",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt",
    *(f"?_{cls.__name__}/{name}" for cls in (*OWN, *STOCK) for name in ("config.json", "model.safetensors")),
    *(f"?_ListwiseRerank/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")),
    "*.png", "*.svg", "*.jpg",
)  # fmt: skip
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
HOMES = re.compile(r"(?:/home/|/Users/|/root/|/tmp/|[A-Z]:\\{1,2}Users\\)[\w.-]+")
ABSOLUTE = re.compile(r"(?:/|~/|[A-Za-z]:[\\/])[\w.-]+[\\/].*")


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


def check_contents(folder: Path, private: Iterable[Path] = ()) -> list[File]:
    """Check a finished folder against the allow-list, and its texts for access tokens and paths of this machine.

    Args:
        folder: The folder.
        private: Folders whose paths must not occur, besides the home folder and the working folder.

    Returns:
        Its files, sorted by name.

    Raises:
        ValueError: A file is not allowed, is not valid JSON, or tells something private.
        OSError: A file cannot be read.
    """
    files = [describe(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    folders = [*(path.resolve() for path in private), Path.home(), Path.cwd()]
    paths = [str(path) for path in folders if path.name]  # without the root, which is the home of some containers
    for file in files:
        if not any(fnmatchcase(file.name, pattern) for pattern in ALLOWED):
            raise ValueError(f"{file.name} is not on the list of files to publish: {', '.join(ALLOWED)}.")
        path = folder / file.name
        if path.suffix == ".json":
            read_json(path)
        if path.suffix == ".safetensors" or (path.suffix in TEXTS and path.name not in VOCABULARIES):
            _check_text(_text(path), file.name, paths)
    return files


def describe(path: Path, folder: Path) -> File:
    """Describe a file by its name in a folder, its size and its hashes.

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


def _text(path: Path) -> str:
    if path.suffix == ".safetensors":  # an adapter's is copied as it is, with all notes of its writer
        with safe_open(path, framework="pt") as file:
            return json.dumps(file.metadata(), ensure_ascii=False)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not a text in UTF-8: {error}. Write it again.") from error


def _check_text(text: str, name: str, paths: Iterable[str]) -> None:
    token = get_token()
    if SECRET.search(text) or (token and token in text):
        raise ValueError(f"{name} holds an access token. Remove it, and revoke it if it was ever shared.")
    found = [path for path in paths if re.search(re.escape(path) + r"(?![\w-])", text)]
    found += HOMES.findall(text)
    if name.endswith((".json", ".safetensors")):
        found += filter(ABSOLUTE.fullmatch, _strings(json.loads(text)))
    if found:
        raise ValueError(f"{name} holds {found[0]!r}, a path of this machine. Put a Hub id there, or take it out.")


def _strings(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        yield from _strings(value)
