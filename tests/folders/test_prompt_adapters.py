"""A prompt adapter alone: it finds its base, and neither of them brings anything that was not checked."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from e2rank_st import E2Rank, load_model
from e2rank_st.adapter_e2rank import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from e2rank_st.cli.app import app
from e2rank_st.folders.check import HOME, check_folder
from tests.folders.hostile import Change, both, edit, mark, put, raw, remove, save_adapter, upload, zipped
from tests.hub_server import HubServer
from tests.toy import with_prompt_adapter

CONFIG, WEIGHTS = f"{HOME}/{ADAPTER_CONFIG}", f"{HOME}/{ADAPTER_WEIGHTS}"


@pytest.fixture(scope="session")
def adapted(tiny: E2Rank) -> E2Rank:
    """The tiny model with a prompt adapter. Shared: a test that changes it takes a copy."""
    return with_prompt_adapter(tiny)


@pytest.fixture
def alone(adapted: E2Rank, checkpoint: Path, tmp_path: Path) -> Path:
    """The adapter alone, on the tiny checkpoint; a copy to spoil."""
    adapted.save_prompt_adapter(tmp_path / "alone")
    edit(CONFIG, base_model_name_or_path=str(checkpoint), revision=None)(tmp_path / "alone")
    return tmp_path / "alone"


def assert_whole(model: E2Rank, adapted: E2Rank, facts: list[str]) -> None:
    """Its vectors and rankings are those of the model that the adapter is from, bit for bit."""
    assert (model.encode(facts) == adapted.encode(facts)).all()
    assert model.rerank("fleas", facts) == adapted.rerank("fleas", facts)


@pytest.mark.parametrize("trusts", [False, True])
@pytest.mark.parametrize("door", [E2Rank, load_model])
def test_a_folder_and_its_base(alone: Path, adapted: E2Rank, facts: list[str], door: Any, trusts: bool):
    """Guards against a door that does not know the adapter alone, or that needs trust in code that is not there."""
    assert check_folder(alone) == "prompt adapter"
    model = door(str(alone), device="cpu", trust_remote_code=trusts)
    assert_whole(model, adapted, facts)
    with pytest.raises(ValueError, match=r"holds a prompt adapter, which is never merged\. Load it with E2Rank\("):
        E2Rank.from_adapter(alone, device="cpu")
    modes = {path.name: path.stat().st_mode for path in (alone / HOME).iterdir()}
    assert modes[ADAPTER_WEIGHTS] == modes[ADAPTER_CONFIG], "readable for all who may read the configuration"


@pytest.mark.parametrize("trusts", [False, True])
def test_from_the_hub(
    hub: HubServer, alone: Path, checkpoint: Path, adapted: E2Rank, facts: list[str], tmp_path: Path, trusts: bool
):
    """Guards against a base of a later state than the one that the adapter names, or that is loaded with its code."""
    commit = upload(hub, checkpoint, "org/base")
    edit(CONFIG, base_model_name_or_path="org/base", revision=commit)(alone)
    put("evil.py", "raise SystemExit")(alone)
    zipped("pytorch_model.bin")(alone)
    upload(hub, alone, "org/adapter")
    hub.commit(hub.repositories["org/base"], "main", {"config.json": b"{}"})
    cache = str(tmp_path / "cache")
    for door in (E2Rank, load_model):
        model = door("org/adapter", device="cpu", cache_folder=cache, trust_remote_code=trusts)
        assert_whole(model, adapted, facts)
    assert model.model_card_data.base_model == "org/base"
    assert not hub.sent("GET", r"pytorch_model\.bin|\.py$")
    assert not mark(alone).exists()


def test_without_the_base(
    hub: HubServer, alone: Path, checkpoint: Path, adapted: E2Rank, facts, tmp_path: Path, monkeypatch
):
    """Guards against an error that does not say which download is missing, and a cached base that is not found."""
    commit = upload(hub, checkpoint, "org/base")
    edit(CONFIG, base_model_name_or_path="org/base", revision=commit)(alone)
    upload(hub, alone, "org/adapter")
    cache = str(tmp_path / "cache")
    E2Rank("org/adapter", device="cpu", cache_folder=cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_whole(E2Rank("org/adapter", device="cpu", cache_folder=cache), adapted, facts)
    words = r"Could not load the base org/base \(.*\)\. .*: hf download org/base"
    with pytest.raises(OSError, match=words):
        E2Rank(str(alone), device="cpu", cache_folder=str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    told = CliRunner().invoke(app, ["rerank", "fleas", "-", "--model", str(alone)], input="a\nb\n")
    assert told.exit_code == 1
    assert "e2rank: error: Could not load the base org/base (" in told.stderr
    assert told.stderr.count("\n") == 1


def test_on_the_command_line(alone: Path, adapted: E2Rank):
    """Guards against a command that takes whole models only."""
    command = ["rerank", "fleas", "-", "--model", str(alone), "--device", "cpu"]
    told = CliRunner().invoke(app, command, input="Iron melts.\nFleas live.\n")
    assert told.exit_code == 0, told.stderr
    first = adapted.rerank("fleas", ["Iron melts.", "Fleas live."])[0]
    assert f"{first['score']:.4f}"[:6] in told.stdout.splitlines()[0] + told.stdout


PICKLED = both(remove(WEIGHTS), raw(WEIGHTS))
BROKEN: dict[str, tuple[Change, str]] = {
    "code": (edit(CONFIG, auto_map={"AutoModel": "other/repo--evil.Evil"}), "sets auto_map"),
    "code deep inside": (edit(CONFIG, x=[{"auto_map": {"a": "evil.Evil"}}]), r"sets x\.0\.auto_map"),
    "code of the library": (edit(CONFIG, auto_mapping={"parent_library": "antigravity"}), "the library 'antigravity'"),
    "megatron": (edit(CONFIG, megatron_config={"a": 1}, megatron_core="antigravity"), "megatron_config"),
    "prefix tuning": (edit(CONFIG, peft_type="PREFIX_TUNING"), "peft_type='PREFIX_TUNING'"),
    "dora": (edit(CONFIG, use_dora=True), "use_dora"),
    "rank": (edit(CONFIG, r="4"), "'r' to '4'"),
    "rank of nothing": (edit(CONFIG, r=0), "at least 1"),
    "other rank": (edit(CONFIG, r=3), "r=3"),
    "no object": (put(CONFIG, "[1]"), "must hold a JSON object, got list"),
    "no JSON": (put(CONFIG, "{"), "is not valid JSON"),
    "no base": (edit(CONFIG, base_model_name_or_path=None), "does not name its base_model_name_or_path"),
    "empty base": (edit(CONFIG, base_model_name_or_path=""), "names the base '', which is n"),
    "base that is gone": (edit(CONFIG, base_model_name_or_path="/gone/base"), r"'/gone/base', which is n.*Write"),
    "base by a way up": (edit(CONFIG, base_model_name_or_path="../../gone"), r"'\.\./\.\./gone', which is n"),
    "revision": (edit(CONFIG, revision=7), "'revision' to 7; it must be str or null"),
    "revision by a way up": (edit(CONFIG, revision="../../refs"), r"revision '\.\./\.\./refs'\. Give a branch"),
    "pickle": (PICKLED, "not a complete safetensors"),
    "zipped pickle": (zipped(WEIGHTS), "not a complete safetensors"),
    "cut": (lambda folder: os.truncate(folder / WEIGHTS, 40), "not a complete safetensors"),
    "no weights": (remove(WEIGHTS), f"needs {WEIGHTS}, too"),
    "no settings": (remove(f"{HOME}/config.json"), rf"needs {HOME}/config\.json, too"),
    "settings": (edit(f"{HOME}/config.json", instruction=5), "'instruction' to 5; it must be str"),
    "beside a checkpoint": (put("config.json", "{}"), "does not belong to the checkpoint"),
    "beside an adapter": (put(ADAPTER_CONFIG, "{}"), "holds a part of a model"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_refused(alone: Path, checkpoint: Path, hub: HubServer, tmp_path: Path, name: str):
    """Guards against code, damage and traps, from a folder and from the Hub, whether its author is trusted or not."""
    change, message = BROKEN[name]
    upload(hub, checkpoint, "org/base")
    both(edit(CONFIG, base_model_name_or_path="org/base"), change)(alone)
    upload(hub, alone, "org/adapter")
    for given, trusts in ((str(alone), False), (str(alone), True), ("org/adapter", False), ("org/adapter", True)):
        if trusts and name.startswith("beside"):
            continue  # the files of a whole model count, and these are broken
        with pytest.raises(ValueError, match=message):
            E2Rank(given, device="cpu", cache_folder=str(tmp_path / "cache"), trust_remote_code=trusts)
        assert not mark(alone).exists()


@pytest.mark.parametrize("trusts", [False, True])
@pytest.mark.parametrize("kind", ["itself", "a chain", "a model with one", "an adapter", "a pickle", "a local folder"])
def test_bases_that_are_refused(
    alone: Path, adapted: E2Rank, sound: Path, checkpoint: Path, hub: HubServer, tmp_path: Path, kind: str, trusts: bool
):
    """Guards against an endless loop, an adapter on top of another, and a base by which a pickle comes in."""
    base, given, message = tmp_path / "base", str(alone), "is an adapter itself"
    if kind == "itself":
        base = alone
    elif kind == "a chain":
        shutil.copytree(alone, base)
    elif kind == "a model with one":
        adapted.save(str(base))
        message = "has a prompt adapter already"
    elif kind == "an adapter":
        if trusts:
            pytest.skip("a trusted base is loaded as it is")
        save_adapter(sound, base, str(checkpoint))
    elif kind == "a pickle":
        shutil.copytree(checkpoint, base)
        both(remove("model.safetensors"), zipped("pytorch_model.bin"))(base)
        message = "holds no weights|safetensors"
    else:
        base, given, message = checkpoint, "org/adapter", r"which is no Hub id\. Write the base's Hub id"
    edit(CONFIG, base_model_name_or_path=str(base))(alone)
    upload(hub, alone, "org/adapter")
    with pytest.raises((ValueError, OSError), match=message):
        E2Rank(given, device="cpu", cache_folder=str(tmp_path / "cache"), trust_remote_code=trusts)
    assert not mark(base).exists()
    if kind in ("itself", "a chain"):
        edit(CONFIG, base_model_name_or_path="org/adapter")(alone)
        upload(hub, alone, "org/adapter")
        with pytest.raises(ValueError, match="is an adapter itself"):
            E2Rank("org/adapter", device="cpu", cache_folder=str(tmp_path / "cache2"), trust_remote_code=trusts)


@pytest.mark.parametrize("name", ["wider", "a vector", "other layers"])
def test_tensors_of_the_wrong_form(alone: Path, name: str):
    """Guards against changed weights of a different form, which would fail in the first prompt, or not at all."""
    path = alone / WEIGHTS
    tensors = load_file(path)
    layer = next(iter(tensors)).partition(".lora_")[0]
    if name == "wider":
        tensors[f"{layer}.lora_A.weight"] = torch.zeros(4, 33)
    elif name == "a vector":  # a norm's weights have one dimension: a matrix added to them would be spread
        norm = "base_model.model.norm"
        tensors |= {f"{norm}.lora_A.weight": torch.zeros(4, 32), f"{norm}.lora_B.weight": torch.zeros(32, 4)}
    else:
        tensors = {key.replace("layers.", "blocks."): value for key, value in tensors.items()}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors changes '.*; the model has .*Load the adapter's"):
        E2Rank(str(alone), device="cpu")


def test_an_adapter_that_nothing_loads(sound: Path, alone: Path, tmp_path: Path):
    """Guards against a prompt adapter beside a model that would be passed over without a word."""
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    shutil.copytree(alone / HOME, folder / "3_ListwiseRerank")
    with pytest.raises(
        ValueError, match=r"3_ListwiseRerank holds a prompt adapter, which does not belong to the model"
    ):
        check_folder(folder)
    shutil.move(folder / "3_ListwiseRerank" / ADAPTER_CONFIG, folder / HOME)
    with pytest.raises(ValueError, match=ADAPTER_WEIGHTS):
        check_folder(folder)
    shutil.move(folder / "3_ListwiseRerank" / ADAPTER_WEIGHTS, folder / HOME)
    assert check_folder(folder) == "model"
    values = json.loads((alone / CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps(values))
    shutil.copyfile(alone / WEIGHTS, folder / ADAPTER_WEIGHTS)
    with pytest.raises(ValueError, match="holds two adapters"):
        check_folder(folder)
