"""A model folder, an adapter or a released checkpoint → the two revisions of a Hub repository, as folders.

``main`` holds everything, with the code of pooling and reranking in its root. ``embedding`` holds the same weights with
stock modules only, for users who may not run remote code. The same input gives the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from e2rank_st import adapters
from e2rank_st.adapters import BUNDLED_REPOSITORY, bundled_base
from e2rank_st.checkpoints import CHECKPOINTS, HUB_ID
from e2rank_st.folders.check import check_size
from e2rank_st.folders.hub import fetch
from e2rank_st.folders.saved import require
from e2rank_st.model import E2Rank
from e2rank_st.modeling_e2rank import SOURCES
from e2rank_st.publishing.card.page import Card, read_card
from e2rank_st.publishing.contents import File, check_contents
from e2rank_st.publishing.inspection import inspect, weight_names
from e2rank_st.publishing.trial import check_effort
from e2rank_st.storage import read_json, replacing

__all__ = ["REVISIONS", "Build", "Source", "build"]

REVISIONS = ("main", "embedding")
SHARD_SIZE = "5GB"  # of a file of weights
CARD_FILES = ("*.png", "*.svg", "*.jpg", "LICENSE")  # of a repository on the Hub, besides those that loading reads
# How this machine loaded the tokenizer, some of it private; transformers writes it into tokenizer_config.json.
LOADING_KEYS = (
    "is_local", "local_files_only", "token", "use_auth_token", "cache_dir", "revision", "trust_remote_code",
    "name_or_path", "_commit_hash",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A model to publish, and all that belongs to it.

    Attributes:
        model: A model folder, the folder of a LoRA adapter, or the Hub id of a released checkpoint.
        repo_id: The repository's Hub id, ``org/name``.
        card: The model card; by default the model's own ``README.md``.
        license: The licence's text; by default the model's own ``LICENSE``.
        keeps_adapter: Whether ``main`` holds an adapter as one, instead of merged into its base.
        base_model: Hub id of an adapter's base, if its configuration names a local folder.
        preset: The row of :data:`~e2rank_st.checkpoints.CHECKPOINTS` that wires a plain checkpoint.
    """

    model: str
    repo_id: str
    card: Path | None = None
    license: Path | None = None
    keeps_adapter: bool = False
    base_model: str | None = None
    preset: str | None = None


@dataclass(frozen=True)
class Build:
    """A finished Hub repository that is not uploaded yet.

    Attributes:
        folder: The folder that holds a folder for each revision.
        repo_id: The repository's Hub id.
        cards: The card of each revision.
        files: The files of each revision.
        bases: Hub id → folder of the base, if the weights of ``main`` are an adapter.
    """

    folder: Path
    repo_id: str
    cards: Mapping[str, Card]
    files: Mapping[str, list[File]]
    bases: Mapping[str, Path]

    @property
    def folders(self) -> dict[str, Path]:
        """The folder of each revision."""
        return {revision: self.folder / revision for revision in REVISIONS}


def build(source: Source, output: Path) -> tuple[Build, E2Rank]:
    """Build both revisions.

    Args:
        source: The model to publish.
        output: The folder to write, whole or not at all; an earlier build in it is replaced.

    Returns:
        The build, and the source model to compare it with.

    Raises:
        ValueError: The source is broken, could do harm, or tells something private.
        OSError: It, its base or its card cannot be read.
    """
    if not HUB_ID.fullmatch(source.repo_id):
        raise ValueError(f"Got the repository {source.repo_id!r}; a Hub id looks like org/name.")
    folder, root, preset = _find(source)
    _check_output(output, folder)
    kind = inspect(folder, root)
    if kind != "adapter":  # whose base is a different folder
        check_effort(folder)
    if source.keeps_adapter and kind != "adapter":
        raise ValueError(f"{source.model} is a {kind}, not an adapter. Publish it without --adapter.")
    card_file, license_file = source.card or folder / "README.md", source.license or folder / "LICENSE"
    card = read_card(card_file, source.repo_id)
    cards = {"main": card, "embedding": card.embedding(source.repo_id)}
    base = _base(folder, source, card) if kind == "adapter" else ""
    if not license_file.is_file():
        raise FileNotFoundError(f"There is no licence at {license_file}. Name the licence's text with --license.")
    check_size(license_file)
    # On the CPU, where verification loads the build: other devices round differently.
    if kind == "adapter":
        model = E2Rank.from_adapter(folder, device="cpu")
    else:  # a saved model knows how it is wired
        model = E2Rank(str(folder), preset=preset if kind == "checkpoint" else None, device="cpu")
    with replacing(output) as fresh:
        main, embedding = (fresh / revision for revision in REVISIONS)
        _save(model, main)
        if kind != "adapter":  # an adapter's base comes from a different folder
            _check_complete(folder, main)
        _clean(main)
        shutil.copyfile(license_file, main / "LICENSE")
        _derive_embedding(main, embedding)
        if source.keeps_adapter:  # not in "embedding": transformers looks for that branch in the base's repository, too
            _put_adapter(folder, main, base)
        _put_card(cards, fresh, card_file.parent)
        files = {revision: check_contents(fresh / revision, (folder, output)) for revision in REVISIONS}
    bases = {base: _base_folder(folder, base)} if source.keeps_adapter else {}
    return Build(output, source.repo_id, cards, files, bases), model


def _find(source: Source) -> tuple[Path, Path | None, str | None]:
    """The folder, where its links may lead, and the preset."""
    if Path(source.model).is_dir():
        return Path(source.model), None, source.preset
    # "models/name" looks like a Hub id, too, but means a path if there is a folder "models".
    if Path(source.model).parent.is_dir() or not HUB_ID.fullmatch(source.model):
        raise FileNotFoundError(f"{source.model} is neither a folder here nor a Hub id (org/name).")
    snapshot = fetch(source.model, more=CARD_FILES)
    known = next((row.preset for row in CHECKPOINTS if source.model in row.repositories), None)
    return snapshot, snapshot.parents[1], source.preset or known


def _check_output(output: Path, model: Path) -> None:
    """The build takes the place of the output folder, which may only be an earlier build."""
    if model.resolve().is_relative_to(output.resolve()):
        raise ValueError(f"The build would replace {output}, which holds the model {model}. Change --output.")
    if output.exists() and not (output.is_dir() and {path.name for path in output.iterdir()} <= set(REVISIONS)):
        raise ValueError(f"{output} exists and is not an earlier build, so it is not replaced. Change --output.")


def _base(folder: Path, source: Source, card: Card) -> str:
    """The Hub id of an adapter's base."""
    named = adapters.read_adapter_config(folder)["base_model_name_or_path"]
    base = source.base_model or named
    if not HUB_ID.fullmatch(base):
        raise ValueError(
            f"The adapter's base is {base!r}, which is not a Hub id (org/name): nobody else could load it. "
            "Give the base's Hub id with --base-model."
        )
    if base not in card.base_models:
        raise ValueError(f"The adapter's base is {base}, the card's base_model {card.base_models}. Correct the card.")
    if Path(named).is_dir():
        inspect(Path(named))
        check_effort(Path(named))
    return base


def _base_folder(folder: Path, base: str) -> Path:
    """The folder of an adapter's base, which was loaded before."""
    local = Path(adapters.read_adapter_config(folder)["base_model_name_or_path"])
    if not local.is_dir() and base == BUNDLED_REPOSITORY:
        local = Path(bundled_base())
    return local if local.is_dir() else Path(snapshot_download(base, local_files_only=True))


def _check_complete(folder: Path, main: Path) -> None:
    """Refuse a model with gaps: loading fills them with random weights, and says so in a log at most."""
    names = weight_names(folder)
    names |= {name.partition(".")[2] for name in names}  # a causal model puts its backbone's name in front
    missing = sorted(weight_names(main) - names)
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} weights of its model, {missing[0]} among them. Copy the whole model again."
        )


def _save(model: E2Rank, folder: Path) -> None:
    backbone: Any = model.transformers_model
    # Sentence-Transformers passes no shard size on, and transformers' own default is 50 GB.
    backbone.save_pretrained = partial(backbone.save_pretrained, max_shard_size=SHARD_SIZE)
    try:
        model.save_pretrained(str(folder), create_model_card=False)
    finally:
        del backbone.save_pretrained


def _put_adapter(source: Path, folder: Path, base: str) -> None:
    """Replace the merged weights by the adapter."""
    for path in (*folder.glob("model*.safetensors*"), folder / "config.json"):
        path.unlink()
    shutil.copyfile(source / adapters.WEIGHTS, folder / adapters.WEIGHTS)
    config = read_json(source / adapters.CONFIG) | {"base_model_name_or_path": base, "inference_mode": True}
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])  # peft writes a set, in any order
    _write_json(folder / adapters.CONFIG, config)
    require(folder)


def _clean(folder: Path) -> None:
    """Forget how the model was loaded here."""
    path = folder / "tokenizer_config.json"
    _write_json(path, {name: value for name, value in read_json(path).items() if name not in LOADING_KEYS})


def _derive_embedding(main: Path, folder: Path) -> None:
    """The same weights and tokenizer, without code: stock pooling, and a stock module that normalises."""
    rows = read_json(main / "modules.json")
    left_out = shutil.ignore_patterns(*SOURCES, "modules.json", rows[-1]["path"])
    shutil.copytree(main, folder, ignore=left_out, copy_function=_share)
    stock = (Pooling, Normalize)
    types = [rows[0]["type"], *(f"{cls.__module__}.{cls.__name__}" for cls in stock)]
    paths = [rows[0]["path"], rows[1]["path"], f"2_{Normalize.__name__}"]
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": kind}
        for idx, (path, kind) in enumerate(zip(paths, types, strict=True))
    ]
    _write_json(folder / "modules.json", modules)


def _share(source: str, target: str) -> None:
    try:
        os.link(source, target)  # gigabytes of weights need no second place
    except OSError:
        shutil.copyfile(source, target)


def _put_card(cards: Mapping[str, Card], folder: Path, beside: Path) -> None:
    for revision, card in cards.items():
        (folder / revision / "README.md").write_text(card.text, encoding="utf-8")
        for figure in card.figures:
            (folder / revision / figure).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(beside / figure, folder / revision / figure)


def _write_json(path: Path, values: Any) -> None:
    path.unlink(missing_ok=True)  # the other revision may share it
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
