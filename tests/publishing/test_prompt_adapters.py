"""A prompt adapter on the Hub: alone, or with the weights of its base, whose vectors stay bit for bit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from e2rank_st import E2Rank
from e2rank_st.adapter_e2rank import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from e2rank_st.bundled import BUNDLED, base_here
from e2rank_st.folders.check import HOME
from e2rank_st.modeling_e2rank import SOURCES
from e2rank_st.publishing import Source, build, verify
from e2rank_st.publishing.inspection import inspect
from tests import ROOT
from tests.folders.hostile import edit, raw
from tests.publishing.conftest import CARD
from tests.toy import with_prompt_adapter

BASE = BUNDLED["bundled"].base
CONFIG = f"{HOME}/{ADAPTER_CONFIG}"
ALONE = {f"{HOME}/{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "config.json")}


def with_card(folder: Path, base: str) -> Path:
    """The folder, with licence and card."""
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    text = CARD.format(base=f"{base}\nbase_model_relation: adapter").replace("![curves](figures/curves.png)", "")
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(bundled: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt adapter of the real base, as training leaves it. Shared: a test that changes it takes a copy."""
    folder = tmp_path_factory.mktemp("made") / "final"
    with_prompt_adapter(bundled).save_prompt_adapter(folder)
    edit(CONFIG, base_model_name_or_path=BASE, revision=None)(folder)
    return with_card(folder, BASE)


@pytest.fixture
def final(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "final"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", ["alone", "whole"])
def test_alone(made: Path, source: str, bundled: E2Rank, facts: list[str], tmp_path: Path):
    """Guards against weights that nobody needs, files that say where they were made, and a different model."""
    folder = made
    if source == "whole":
        folder = tmp_path / "whole"
        E2Rank(str(made), device="cpu").save(str(folder), create_model_card=False)
        with_card(folder, BASE)
    built, model = build(Source(str(folder), "org/adapter", keeps_adapter=True), tmp_path / "build")
    assert {file.name for file in built.files["main"]} == {"README.md", "LICENSE", *ALONE}
    assert list(built.folders) == ["main"], "its vectors are the base's, so there is no branch for them"
    assert read(built.folders["main"] / CONFIG)["base_model_name_or_path"] == BASE
    again = E2Rank(str(built.folders["main"]), device="cpu")
    assert (again.encode(facts) == model.encode(facts)).all()
    assert again.rerank("fleas", facts) == model.rerank("fleas", facts)
    assert inspect(built.folders["main"]) == "prompt adapter"


def test_whole(made: Path, tmp_path: Path):
    """Guards against a repository that needs a second one, and weights that are not those of the base."""
    built, _ = build(Source(str(made), "org/whole"), tmp_path / "build")
    main = built.folders["main"]
    names = {file.name for file in built.files["main"]}
    homes = {name.partition("/")[0] for name in names if name.endswith(ADAPTER_CONFIG)}
    assert {"modules.json", "config.json", "model.safetensors", "tokenizer.json", *SOURCES} <= names
    assert ADAPTER_CONFIG not in names, "transformers would look for peft"
    assert len(homes) == 1
    assert "peft" not in (main / "config_sentence_transformers.json").read_text()
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (main, Path(base_here(BASE))))
    assert all((theirs[name] == tensor).all() for name, tensor in ours.items())
    assert list(built.folders) == ["main"]


@pytest.mark.parametrize("alone", [False, True])
def test_verified_as_a_stranger(made: Path, tmp_path: Path, alone: bool):
    """Guards against a repository that only its author can load, that needs peft, or whose vectors are others."""
    built, model = build(Source(str(made), "org/model", keeps_adapter=alone), tmp_path / "build")
    checks = verify(built, model)
    assert [check.problem for check in checks] == [""] * len(checks)
    assert "E2Rank, without peft; its vectors are the base's, bit for bit" in [check.name for check in checks]
    assert ("main revision, trust_remote_code=True" in [check.name for check in checks]) == (not alone)


def test_vectors_that_are_not_the_bases(checkpoint: Path, tiny: E2Rank, tmp_path: Path):
    """Guards against an adapter that names a base with other vectors, which is how stored ones become worthless."""
    base = Path(shutil.copytree(checkpoint, tmp_path / "base"))
    folder = tmp_path / "final"
    with_prompt_adapter(tiny).save_prompt_adapter(folder)
    edit(CONFIG, base_model_name_or_path=str(base), revision=None)(folder)
    with_card(folder, "org/base")
    source = Source(str(folder), "org/whole", base_model="org/base")
    built, model = build(source, tmp_path / "build")
    config = read(built.folders["main"] / "2_ListwiseRerank" / ADAPTER_CONFIG)
    assert config["base_model_name_or_path"] == "org/base"
    files, remote, _, package, _ = verify(built, model)
    assert (files.problem, remote.problem, package.problem) == ("", "", "")
    tensors = load_file(base / "model.safetensors")
    save_file({name: tensor * 1.001 for name, tensor in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    package = verify(built, model)[-2]
    assert "encode_query differs from that of the base org/base" in package.problem


def test_what_is_refused(final: Path, checkpoint: Path, tmp_path: Path):
    """Guards against a base that no other machine has, a card that misleads, and files that could do harm."""
    source = Source(str(final), "org/adapter", keeps_adapter=True)
    card = (final / "README.md").read_text()
    (final / "README.md").write_text(card.replace("base_model_relation: adapter\n", ""))
    with pytest.raises(ValueError, match=r"base_model_relation is None; .* prompt adapter is 'adapter'"):
        build(source, tmp_path / "build")
    (final / "README.md").write_text(card)
    edit(CONFIG, base_model_name_or_path=str(checkpoint))(final)
    with pytest.raises(ValueError, match=r"not a Hub id .*--base-model"):
        build(source, tmp_path / "build")
    with pytest.raises(ValueError, match=r"base is org/other, the card's base_model"):
        build(replace(source, base_model="org/other"), tmp_path / "build")
    weights = final / HOME / ADAPTER_WEIGHTS
    tensors = load_file(weights)
    next(iter(tensors.values())).view(-1)[3] = float("nan")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"2_ListwiseRerank/adapter_model\.safetensors has NaN or infinite weights"):
        build(source, tmp_path / "build")
    raw(f"{HOME}/{ADAPTER_WEIGHTS}")(final)
    with pytest.raises(ValueError, match="is a pickle"):
        build(source, tmp_path / "build")
    weights.unlink()
    weights.symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="is a link to /etc/hostname, out of the folder"):
        build(source, tmp_path / "build")
    assert not (tmp_path / "build").exists()
