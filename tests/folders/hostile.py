"""Changes that make a sound model folder harmful or broken, and a pickle that shows whether code ran."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.hub_server import HubServer

Change = Callable[[Path], Any]


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (str(self.mark), "w")


def mark(folder: Path) -> Path:
    """The file whose existence shows that the folder's code ran."""
    return folder.parent / "code ran"


def zipped(name: str) -> Change:
    """A pickle in a zip, as ``torch.save`` writes it."""
    return lambda folder: torch.save({"w": Bomb(mark(folder))}, folder / name)


def raw(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Bomb(mark(folder)), protocol=2))


def edit(name: str, **values: Any) -> Change:
    """Set keys of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / name
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**old, **values}))

    return change


def put(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def row(number: int, **values: Any) -> Change:
    """Set keys of a module's row in modules.json; ``None`` removes the key."""

    def change(folder: Path) -> None:
        path = folder / "modules.json"
        rows = json.loads(path.read_text())
        rows[number] = {key: value for key, value in {**rows[number], **values}.items() if value is not None}
        path.write_text(json.dumps(rows))

    return change


def module(kind: str, **config: Any) -> Change:
    """Add a module with a configuration and a pickle as its weights."""

    def change(folder: Path) -> None:
        (folder / "9_X").mkdir()
        (folder / "9_X" / "config.json").write_text(json.dumps(config))
        torch.save({"linear.weight": Bomb(mark(folder))}, folder / "9_X" / "pytorch_model.bin")
        path = folder / "modules.json"
        path.write_text(json.dumps([*json.loads(path.read_text()), {"name": "9", "path": "9_X", "type": kind}]))

    return change


def in_subfolder(folder: Path) -> None:
    """Move the transformer's files to ``0_T``."""
    (folder / "0_T").mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and path.name not in {"modules.json", "config_sentence_transformers.json"}:
            path.rename(folder / "0_T" / path.name)
    row(0, path="0_T")(folder)


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def save_adapter(model: Path, folder: Path, base: str, **config: Any) -> Path:
    """An adapter of rank 2 that changes nothing, with the configuration of a saved model."""
    left_out = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(model, folder, ignore=left_out)
    (folder / "config.json").unlink()
    name = "base_model.model.layers.0.mlp.up_proj"
    weights = {f"{name}.lora_A.weight": torch.zeros(2, 32), f"{name}.lora_B.weight": torch.zeros(64, 2)}
    save_file(weights, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "r": 2, "lora_alpha": 2}
    values |= {"target_modules": ["up_proj"], "base_model_name_or_path": base, **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def upload(server: HubServer, folder: Path, repo_id: str = "org/model") -> str:
    """Put a folder into a repository, pickles included; return the commit."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return server.commit(server.create(repo_id), "main", files)
