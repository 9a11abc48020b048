"""A model folder from anywhere → its kind, or a refusal that names the file and the reason.

Nothing is loaded before this. Loading may run a pickle, follow a path out of the folder, or take an hour to find out
that a shard is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open

from e2rank_st import adapters
from e2rank_st.modeling_e2rank import E2RankPooling, ListwiseRerank
from e2rank_st.storage import read_json

__all__ = ["check_size", "inspect", "weight_names"]

Kind: TypeAlias = Literal["adapter", "model", "checkpoint"]

PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
INDEX = "model.safetensors.index.json"
OWN_TYPES = {
    f"{module}.{cls.__name__}"
    for cls in (E2RankPooling, ListwiseRerank)
    for module in ("modeling_e2rank", cls.__module__)
}
# The file that tells the kind, the kind, and the files that it also needs. The kinds are tried in this order.
KINDS: tuple[tuple[str, Kind, tuple[str, ...]], ...] = (
    (adapters.CONFIG, "adapter", (adapters.WEIGHTS, "modules.json")),
    ("modules.json", "model", ("config.json", "tokenizer.json")),
    ("config.json", "checkpoint", ("tokenizer.json",)),
)
MIB = 2**20
# The Hub takes larger texts only with LFS; vocabularies may be larger.
MAX_TEXT_BYTES, MAX_VOCABULARY_BYTES = 10 * MIB, 100 * MIB
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"}
TEXTS = {".json", ".md", ".txt", ".jinja", ".py", ".svg", ""}


def inspect(folder: Path, root: Path | None = None) -> Kind:
    """Look a model folder over without loading it.

    Args:
        folder: The folder.
        root: The folder that links may lead to; by default the same. A snapshot in the Hub's cache is made of links.

    Returns:
        The kind: a LoRA ``adapter``, a Sentence-Transformers ``model``, or a plain ``checkpoint``.

    Raises:
        ValueError: The folder is broken, or could do harm when it is loaded.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give a model folder, an adapter's folder, or a Hub id (org/name).")
    files = list(_files(folder, (root or folder).resolve()))
    for path in files:
        _check_file(path, path.relative_to(folder))
    kind = _kind(folder)
    if (folder / "modules.json").exists():
        _check_modules(folder)
    if kind != "adapter":
        if _read_object(folder / "config.json").get("auto_map"):
            raise ValueError("config.json has an auto_map, which runs code of its own. Use a known architecture.")
        _check_shards(folder)
    for path in files:
        if path.suffix == ".safetensors":
            _check_weights(path, path.relative_to(folder))
    return kind


def check_size(path: Path) -> None:
    """Refuse a text that is larger than the Hub takes; a vocabulary may be larger.

    Raises:
        ValueError: It is too large.
    """
    allowed, size = MAX_VOCABULARY_BYTES if path.name in VOCABULARIES else MAX_TEXT_BYTES, path.stat().st_size
    if size > allowed:
        raise ValueError(f"{path.name} has {size / MIB:.0f} MiB; allowed are {allowed // MIB}. Shorten it.")


def weight_names(folder: Path) -> set[str]:
    """The names of the tensors in the safetensors files of a folder that was inspected."""
    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def _files(folder: Path, root: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise ValueError(f"{name} is a link to {path.resolve()}, out of the folder. Put a copy in its place.")
        if path.is_file():
            yield path
        elif not path.is_dir():
            raise ValueError(f"{name} is neither a file nor a folder (a broken link, a pipe, a device). Remove it.")


def _check_file(path: Path, name: Path) -> None:
    if path.suffix in PICKLES or _begins_as_pickle(path):
        raise ValueError(f"{name} is a pickle, which can run code when loaded. Save as safetensors and remove it.")
    if path.suffix and path.suffix in TEXTS:
        check_size(path)
    if path.suffix == ".json":
        read_json(path)


def _begins_as_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    # safetensors: the length of a JSON object, then the object. Some lengths have a pickle's first two bytes.
    if head[8:] == b"{" and 8 + int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return False
    return head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}  # protocol 2 or later


def _kind(folder: Path) -> Kind:
    for mark, kind, needed in KINDS:
        if (folder / mark).is_file():
            missing = [name for name in needed if not (folder / name).is_file()]
            if missing:
                raise ValueError(f"{folder} holds {mark}, so it needs {', '.join(missing)}, too. Save the model again.")
            return kind
    marks = ", ".join(mark for mark, _, _ in KINDS)
    raise ValueError(f"{folder} holds no model: none of {marks}. Give the folder that training or saving wrote.")


def _check_modules(folder: Path) -> None:
    rows = read_json(folder / "modules.json")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("modules.json must be a list of modules. Save the model again.")
    for row in rows:
        path, kind = row.get("path"), row.get("type")
        if not isinstance(row.get("name"), str):
            raise ValueError(f"modules.json has a module without a name, at {path!r}. Save the model again.")
        is_plain = isinstance(path, str) and not set(path) & set("\\:") and ".." not in path.split("/")
        if not is_plain or path.startswith("/") or not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"modules.json names the path {path!r}, out of the folder. Use a folder's plain name.")
        if not isinstance(kind, str) or not (kind in OWN_TYPES or kind.startswith("sentence_transformers.")):
            raise ValueError(
                f"modules.json names the class {kind!r}; allowed are those of sentence_transformers and "
                f"{', '.join(sorted(OWN_TYPES))}. Other code is not published."
            )
        if kind in OWN_TYPES and not (folder / path / "config.json").is_file():
            raise ValueError(f"{path}/config.json is missing, the configuration of {kind}. Save the model again.")


def _read_object(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} must hold a JSON object, got {type(values).__name__}. Save the model again.")
    return values


def _check_shards(folder: Path) -> None:
    if not (folder / INDEX).is_file():
        if not (folder / "model.safetensors").is_file():
            raise ValueError(f"{folder} holds no weights: neither model.safetensors nor {INDEX}. Save the model again.")
        return
    places = _read_object(folder / INDEX).get("weight_map")
    if not places or not isinstance(places, dict):
        raise ValueError(f"{INDEX} has no weight_map, so there are no weights. Copy the whole model again.")
    for name in sorted(set(map(str, places.values()))):
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{INDEX} names {name!r}, which is not a file of the folder. Copy the whole model again.")


def _check_weights(path: Path, name: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # not a mapping
                tensor = file.get_tensor(key)
                if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                    raise ValueError(
                        f"{name} has NaN or infinite weights in {key!r}. Train again, or take an earlier one."
                    )
    except SafetensorError as error:
        raise ValueError(f"{name} is not a complete safetensors file: {error}. Copy or save it again.") from error
