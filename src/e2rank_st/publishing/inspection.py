"""A model folder from anywhere → its kind, or a refusal that names the file and the reason, before it is published.

Nothing is loaded before this. To what loading refuses it adds what must not be published: pickles, links out of the
folder, texts that the Hub does not take, and weights that are worthless.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from e2rank_st.folders.check import TEXTS, Kind, check_folder, check_size, is_pickle, weight_files
from e2rank_st.folders.weights import open_weights
from e2rank_st.storage import read_json

__all__ = ["inspect", "weight_names"]

PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}


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
    files = list(_files(folder, (root or folder).resolve()))
    for path in files:
        _check_file(path, path.relative_to(folder))
    kind = check_folder(folder)
    for path in files:
        if path.suffix == ".safetensors":
            _check_weights(path, path.relative_to(folder))
    return kind


def weight_names(folder: Path) -> set[str]:
    """The names of the tensors in the safetensors files of a folder that was inspected."""
    names: set[str] = set()
    for path in weight_files(folder):
        with open_weights(path) as file:
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
    if path.suffix in PICKLES or is_pickle(path):
        raise ValueError(f"{name} is a pickle, which can run code when loaded. Save as safetensors and remove it.")
    if path.suffix and path.suffix in TEXTS:
        check_size(path)
    if path.suffix == ".json":
        read_json(path)


def _check_weights(path: Path, name: Path) -> None:
    with open_weights(path) as file:
        for key in file.keys():  # noqa: SIM118  # not a mapping
            tensor = file.get_tensor(key)
            if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                raise ValueError(f"{name} has NaN or infinite weights in {key!r}. Train again, or take an earlier one.")
