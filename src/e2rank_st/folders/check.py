"""A model folder from anywhere → its kind, or a refusal that names the file and the reason, before it is loaded.

Loading reads the files of :data:`FILES` only: weights as safetensors, JSON, and texts in UTF-8. A pickle beside them is
not opened. Loading and publishing use this one check, so what can be loaded without ``trust_remote_code`` is harmless.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from sentence_transformers.base.modules import Dense, Module, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from tokenizers import Tokenizer

from e2rank_st.adapter_e2rank import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from e2rank_st.folders.values import check_adapter, check_settings, check_types, check_values
from e2rank_st.folders.weights import open_weights
from e2rank_st.modeling_e2rank import E2RankPooling, ListwiseRerank
from e2rank_st.storage import read_json

__all__ = [
    "FILES", "HOME", "MODULES", "Kind", "check_folder", "check_size", "is_pickle",
    "weight_files",
]  # fmt: skip

Kind: TypeAlias = Literal["adapter", "model", "checkpoint", "prompt adapter"]

HOME = "2_ListwiseRerank"  # the folder of a prompt adapter that is alone

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# The files that loading reads; a folder has one for each module.
FILES = (
    "config.json", "generation_config.json", "modules.json", "sentence_*_config.json",
    "config_sentence_transformers.json", ADAPTER_CONFIG, "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "chat_template.json",
    "vocab.txt", "merges.txt", "chat_template.jinja", "README.md",
    WEIGHTS, INDEX, "model-*-of-*.safetensors", ADAPTER_WEIGHTS,
    f"*/{ADAPTER_CONFIG}", f"*/{ADAPTER_WEIGHTS}", "*/config.json", f"*/{WEIGHTS}",
    "*/sentence_*_config.json", "*/tokenizer.json", "*/tokenizer_config.json", "*/special_tokens_map.json",
)  # fmt: skip
# The file that tells the kind, the kind, and the files that it also needs. The kinds are tried in this order.
KINDS: tuple[tuple[str, Kind, tuple[str, ...]], ...] = (
    (ADAPTER_CONFIG, "adapter", (ADAPTER_WEIGHTS, "modules.json")),
    ("modules.json", "model", ()),
    ("config.json", "checkpoint", ()),
    (f"{HOME}/{ADAPTER_CONFIG}", "prompt adapter", (f"{HOME}/{ADAPTER_WEIGHTS}", f"{HOME}/config.json")),
)
OWN, STOCK = (E2RankPooling, ListwiseRerank), (Transformer, Pooling, Normalize, Dense, LayerNorm)
# The name of a class in modules.json → the class. No name of a folder is imported.
MODULES: dict[str, type[Module]] = {
    f"{package}.{cls.__name__}": cls
    for classes, packages in (
        (OWN, ("modeling_e2rank",)),
        (STOCK, ("sentence_transformers.models", "sentence_transformers.sentence_transformer.modules")),
    )
    for cls in classes
    for package in (cls.__module__, cls.__module__.rpartition(".")[0], *packages)
}
EMBEDS = "SentenceTransformer"
ROW = {"path": (str,), "type": (str,)}
MIB = 2**20
MAX_TEXT_BYTES, MAX_VOCABULARY_BYTES = 10 * MIB, 100 * MIB  # the Hub takes larger texts only with LFS
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"}
TEXTS = {".json", ".md", ".txt", ".jinja", ".py", ".svg", ""}
# Names of numbers of parts. Other parts than these layers may share their weights, so a thousand are always allowed.
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
PARTS, MOST_PARTS = re.compile(r"^(?:n|num)_.*(?:layer|block|expert|stage)|(?:layers|blocks|experts|stages)$"), 1024


def check_folder(folder: Path) -> Kind:
    """Check all that loading reads of a folder, without loading it.

    Args:
        folder: The folder.

    Returns:
        The kind: a LoRA ``adapter``, a Sentence-Transformers ``model``, a plain ``checkpoint``, or a ``prompt adapter``
        without its base.

    Raises:
        ValueError: The folder is broken, or could do harm when it is loaded.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give a model folder, an adapter's folder, or a Hub id (org/name).")
    _check_files(folder)
    _check_embeds(folder)
    kind = _kind(folder)
    homes = [folder]  # of the transformer
    if (folder / "modules.json").is_file():
        homes = _check_modules(folder)
    _check_belongs(folder, kind)
    if kind == "prompt adapter":
        _check_module(folder, HOME, ListwiseRerank)
        return kind
    if kind == "adapter":
        _check_adapter(folder)
        if not (folder / "config.json").is_file():  # otherwise transformers takes the folder for the base, too
            return kind
    for home in homes:
        _require(home, "config.json", "tokenizer.json")
        _check_weights(home)
    return kind


def check_size(path: Path) -> None:
    """Refuse a text that is larger than the Hub takes; a vocabulary may be larger.

    Raises:
        ValueError: It is too large.
    """
    allowed, size = MAX_VOCABULARY_BYTES if path.name in VOCABULARIES else MAX_TEXT_BYTES, path.stat().st_size
    if size > allowed:
        raise ValueError(f"{path.name} has {size / MIB:.0f} MiB; allowed are {allowed // MIB}. Shorten it.")


def is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle, or as the zip that ``torch.save`` puts around one."""
    with path.open("rb") as file:
        head = file.read(9)
    # safetensors: the length of a JSON object, then the object. Some lengths have a pickle's first two bytes.
    if head[8:] == b"{" and 8 + int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return False
    is_protocol = head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}  # 2 or later
    return is_protocol or head[:4] == b"PK\x03\x04"


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold a model's weights.

    Raises:
        ValueError: There are none, or the index names a file that is not safetensors in this folder.
    """
    names = {WEIGHTS} if (folder / WEIGHTS).is_file() else set()
    if (folder / INDEX).is_file():
        named = set(read_json(folder / INDEX).get("weight_map", {}).values())
        if not named:
            raise ValueError(f"{INDEX} has no weight_map, so there are no weights. Copy the whole model again.")
        names |= named
    if not names:
        raise ValueError(f"{folder} holds no weights: neither {WEIGHTS} nor {INDEX}. Save it as safetensors.")
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise ValueError(f"{INDEX} names {name!r}, which is not a file of weights (.safetensors) in the folder.")
    return [folder / name for name in sorted(names)]


def _check_files(folder: Path) -> None:
    """Check the files of a folder by their names and contents; those of its subfolders belong to modules."""
    for path in sorted(folder.iterdir()):
        is_read = any(fnmatchcase(path.name, pattern) for pattern in FILES)
        if is_read and not path.is_file():
            raise ValueError(f"{path.name} is not a file (a broken link, a pipe, a folder). Put a file in its place.")
        if path.is_file() and path.suffix in {*TEXTS, ".safetensors"} and is_pickle(path):
            raise ValueError(f"{path.name} is a pickle, which can run code. Save the model as safetensors.")
        if is_read and path.suffix in TEXTS:
            _check_text(path)


def _check_embeds(folder: Path) -> None:
    """Refuse other kinds of models of Sentence-Transformers, such as a CrossEncoder: they do not embed texts."""
    file = folder / "config_sentence_transformers.json"
    kind = read_json(file).get("model_type", EMBEDS) if file.is_file() else EMBEDS
    if kind != EMBEDS:
        raise ValueError(f"{file.name} says that this is a {kind!s:.80}, not a {EMBEDS}. Give an embedding model.")


def _check_text(path: Path) -> None:
    check_size(path)
    if path.suffix != ".json":
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} is not a text in UTF-8: {error}. Write it again.") from error
    elif path.name not in {"modules.json", ADAPTER_CONFIG}:  # these have checks of their own
        check_values(path.name, read_json(path))
    if path.name == "tokenizer.json":
        try:
            Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises no narrower one
            raise ValueError(f"{path.name} is not a tokenizer: {error}. Save the model again.") from error


def _kind(folder: Path) -> Kind:
    for mark, kind, needed in KINDS:
        if (folder / mark).is_file():
            _require(folder, *needed)
            return kind
    marks = ", ".join(mark for mark, _, _ in KINDS)
    raise ValueError(f"{folder} holds no model: none of {marks}. Give the folder that training or saving wrote.")


def _check_belongs(folder: Path, kind: Kind) -> None:
    """Refuse a prompt adapter that loading would pass over without a word."""
    path = folder / "modules.json"
    named = {folder / row["path"] for row in read_json(path)} if path.is_file() else set()
    for home in (found.parent for found in sorted(folder.glob(f"*_{ListwiseRerank.__name__}/{ADAPTER_CONFIG}"))):
        if kind == "adapter":
            raise ValueError(f"{folder} holds two adapters, one of them in {home.name}. Merge one, or remove it.")
        if home not in named and (kind != "prompt adapter" or home.name != HOME):
            raise ValueError(
                f"{home} holds a prompt adapter, which does not belong to the {kind} in {folder}. Save the whole model "
                f"again, or put {HOME} alone into a folder of its own."
            )


def _require(folder: Path, *names: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} holds a part of a model; it needs {', '.join(missing)}, too. Save the model again.")


def _check_modules(folder: Path) -> list[Path]:
    """Check ``modules.json`` and the files of each module; return the folders of the transformers."""
    rows, homes = read_json(folder / "modules.json"), []
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"modules.json must be a list of modules, got {rows!r:.80}. Save the model again.")
    for number, row in enumerate(rows):
        if not isinstance(row.get("name"), str):
            raise ValueError(f"modules.json has a module without a name, at {row.get('path')!r:.80}. Save it again.")
        check_types(f"modules.json[{number}]", row, ROW, needed=True)
        check_types(f"modules.json[{number}]", row, {"kwargs": (list,)})
        path, cls = row["path"], MODULES.get(row["type"])
        is_plain = not set(path) & set("\\:\0") and ".." not in path.split("/") and not path.startswith("/")
        if not is_plain or not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"modules.json names the path {path!r}, out of the folder. Use a folder's plain name.")
        if cls is None:
            allowed = ", ".join(cls.__name__ for cls in (*STOCK, *OWN))
            raise ValueError(
                f"modules.json names the class {row['type']!r:.80}; allowed are {allowed}. "
                "If you trust its author, load with trust_remote_code=True."
            )
        if cls is not Transformer:
            _check_module(folder, path, cls)
            continue
        homes.append(folder / path)
        if (folder / path).resolve() != folder.resolve():
            if (folder / path / ADAPTER_CONFIG).exists():  # transformers would load the base that it names
                raise ValueError(f"{path} holds an adapter, which belongs in the root of a folder. Save it again.")
            _require(folder, f"{path}/config.json")
            _check_files(folder / path)
    return homes


def _check_module(folder: Path, path: str, cls: type[Module]) -> None:
    """Check a module's configuration by building the module without memory, and look for its weights."""
    file = folder / path / "config.json"
    name = f"{path}/config.json"
    if cls in OWN and not file.is_file():
        raise ValueError(f"{name} is missing, the configuration of {cls.__name__}. Save the model again.")
    if file.is_file():
        check_size(file)
        check_settings(name, read_json(file))
    if cls is ListwiseRerank and (folder / path / ADAPTER_CONFIG).is_file():
        _check_adapter(folder, path)
    if cls is Normalize:  # it ignores keys that it does not know
        return
    settings = cls.load_config(str(folder), subfolder=path)
    settings.pop("activation_function", None)  # a name, which loading turns into a module
    try:
        with torch.device("meta"):
            module = cls(**settings)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{name} does not fit {cls.__name__}: {error} Save the model again.") from error
    if next(module.parameters(), None) is not None:
        _require(folder, f"{path}/{WEIGHTS}")
        with open_weights(folder / path / WEIGHTS):
            pass


def _check_adapter(folder: Path, path: str = "") -> None:
    """Check an adapter's two files in a subfolder."""
    check_adapter(f"{path}/{ADAPTER_CONFIG}".lstrip("/"), read_json(folder / path / ADAPTER_CONFIG))
    _require(folder / path, ADAPTER_WEIGHTS)
    with open_weights(folder / path / ADAPTER_WEIGHTS):
        pass


def _check_weights(home: Path) -> None:
    """Check a transformer's weights, and that they are those of as many layers as its configuration says."""
    number = 0
    for path in weight_files(home):
        with open_weights(path) as file:
            number += len(file.keys())
    waiting: list[Any] = [read_json(home / "config.json")]
    while waiting:  # a million layers would be built for minutes, and then lack their weights
        value = waiting.pop()
        if isinstance(value, dict):
            for key in (key for key, part in value.items() if part is not None and PARTS.search(key)):
                is_number, most = type(value[key]) is int, number if key in LAYERS else max(number, MOST_PARTS)
                if (is_number and value[key] > most) or (key in LAYERS and not is_number):
                    raise ValueError(
                        f"config.json sets {key!r} to {value[key]!r:.80}, and there are {number} weights. "
                        "Copy the whole model again."
                    )
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
