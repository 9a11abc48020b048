"""A model folder, an adapter or a released checkpoint → the revisions of a Hub repository, as folders.

``main`` holds everything, with the code of pooling and reranking in its root. ``embedding`` holds the same weights with
stock modules only, for users who may not run remote code. A model with a prompt adapter has no such revision: its
vectors are those of its base, which everybody can load. The same input gives the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from e2rank_st import adapters
from e2rank_st.adapter_e2rank import LoraAdapter
from e2rank_st.bundled import base_here
from e2rank_st.checkpoints import CHECKPOINTS, HUB_ID
from e2rank_st.folders.check import Kind, check_size
from e2rank_st.folders.hub import fetch
from e2rank_st.folders.saved import require
from e2rank_st.model import E2Rank
from e2rank_st.modeling_e2rank import SOURCES, ListwiseRerank
from e2rank_st.publishing.card.page import Card, read_card
from e2rank_st.publishing.contents import File, check_contents
from e2rank_st.publishing.inspection import inspect, weight_names
from e2rank_st.publishing.trial import check_effort
from e2rank_st.storage import read_json, replacing

__all__ = ["REVISIONS", "Base", "Build", "Form", "Source", "build"]

# A whole model; a LoRA adapter that its base's weights are loaded for; a prompt adapter with and without its base's
# weights.
Form: TypeAlias = Literal["model", "adapter", "prompt model", "prompt adapter"]

REVISIONS = ("main", "embedding")
RELATION = "adapter"  # of a prompt adapter to its base, as the Hub calls it
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
        model: A model folder, the folder of a LoRA or prompt adapter, or the Hub id of a released checkpoint.
        repo_id: The repository's Hub id, ``org/name``.
        card: The model card; by default the model's own ``README.md``.
        license: The licence's text; by default the model's own ``LICENSE``.
        keeps_adapter: Whether ``main`` holds an adapter as one, without the weights of its base.
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
class Base:
    """The base of an adapter.

    Attributes:
        repo_id: Its Hub id.
        revision: Its revision there, if the adapter names one.
        folder: Its files here.
    """

    repo_id: str
    revision: str | None
    folder: Path


@dataclass(frozen=True)
class Build:
    """A finished Hub repository that is not uploaded yet.

    Attributes:
        folder: The folder that holds a folder for each revision.
        repo_id: The repository's Hub id.
        cards: The card of each revision.
        files: The files of each revision.
        form: What ``main`` holds.
        base: The base of an adapter that was not merged.
    """

    folder: Path
    repo_id: str
    cards: Mapping[str, Card]
    files: Mapping[str, list[File]]
    form: Form = "model"
    base: Base | None = None

    @property
    def folders(self) -> dict[str, Path]:
        """The folder of each revision."""
        return {revision: self.folder / revision for revision in self.files}


def build(source: Source, output: Path) -> tuple[Build, E2Rank]:
    """Build the revisions.

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
    if not kind.endswith("adapter"):  # whose base is a different folder
        check_effort(folder)
    form, place = _form(folder, kind, source)
    card_file, license_file = source.card or folder / "README.md", source.license or folder / "LICENSE"
    card = read_card(card_file, source.repo_id)
    base = _base(place, source, card, form) if place else None
    if not license_file.is_file():
        raise FileNotFoundError(f"There is no licence at {license_file}. Name the licence's text with --license.")
    check_size(license_file)
    # On the CPU, where verification loads the build: other devices round differently.
    if kind == "adapter":
        model = E2Rank.from_adapter(folder, device="cpu")
    else:  # a saved model knows how it is wired
        model = E2Rank(str(folder), preset=preset if kind == "checkpoint" else None, device="cpu")
    cards = {"main": card} if form.startswith("prompt") else {"main": card, "embedding": card.embedding(source.repo_id)}
    with replacing(output) as fresh:
        main = fresh / "main"
        _write_main(model, main, form, base)
        if not kind.endswith("adapter") and form != "prompt adapter":  # the base comes from a different folder
            _check_complete(folder, main)
        shutil.copyfile(license_file, main / "LICENSE")
        if "embedding" in cards:
            _derive_embedding(main, fresh / "embedding")
        if form == "adapter" and base:  # not in "embedding": transformers looks for it in the base's repository, too
            _put_adapter(folder, main, base.repo_id)
        _put_card(cards, fresh, card_file.parent)
        files = {revision: check_contents(fresh / revision, (folder, output)) for revision in cards}
    return Build(output, source.repo_id, cards, files, form, None if form == "model" else base), model


def _form(folder: Path, kind: Kind, source: Source) -> tuple[Form, Path | None]:
    """What to publish, and the folder with the adapter's files, if there is one."""
    home = next((path.parent for path in folder.glob(f"*_{ListwiseRerank.__name__}/{adapters.CONFIG}")), None)
    if source.keeps_adapter and kind != "adapter" and home is None:
        raise ValueError(f"{source.model} is a {kind}, not an adapter. Publish it without --adapter.")
    if home is not None:
        return ("prompt adapter" if source.keeps_adapter else "prompt model"), home
    return ("adapter" if source.keeps_adapter else "model"), (folder if kind == "adapter" else None)


def _write_main(model: E2Rank, main: Path, form: Form, base: Base | None) -> None:
    """Write the model or the prompt adapter alone, which names its base as others find it."""
    adapter = model.listwise.adapter
    if adapter is not None and base is not None:
        named = {"base_model_name_or_path": base.repo_id, "revision": base.revision, "inference_mode": True}
        model.listwise.adapter = LoraAdapter(adapter.config | named, adapter.tensors)
    if form == "prompt adapter":
        model.save_prompt_adapter(main)
    else:
        _save(model, main)
        _clean(main)


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


def _base(folder: Path, source: Source, card: Card, form: Form) -> Base:
    """The base of an adapter: its Hub id, and its files, which were inspected if they are a folder here."""
    config = adapters.read_adapter_config(folder)
    named = config["base_model_name_or_path"]
    base = source.base_model or named
    if not HUB_ID.fullmatch(base):
        raise ValueError(
            f"The adapter's base is {base!r}, which is not a Hub id (org/name): nobody else could load it. "
            "Give the base's Hub id with --base-model."
        )
    if base not in card.base_models:
        raise ValueError(f"The adapter's base is {base}, the card's base_model {card.base_models}. Correct the card.")
    relation = card.metadata.get("base_model_relation")
    if form.startswith("prompt") and relation != RELATION:
        raise ValueError(
            f"The card's base_model_relation is {relation!r}; that of a model with a prompt adapter is {RELATION!r}, "
            "since the base's weights and vectors stay. Correct the card."
        )
    revision = config.get("revision") if base == named else None
    if Path(named).is_dir():
        inspect(Path(named))
        check_effort(Path(named))
        return Base(base, revision, Path(named))
    found = base_here(base)
    return Base(base, revision, Path(found) if found != base else fetch(base, revision=revision))


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
