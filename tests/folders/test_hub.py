"""A Hub id becomes a checked snapshot, and the model keeps its names."""

import logging
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
from huggingface_hub.constants import HF_HUB_CACHE

import e2rank_st.folders.hub as hub_module
import e2rank_st.model as model_module
from e2rank_st import E2Rank
from e2rank_st.folders.check import check_folder
from tests.folders.hostile import mark, put, save_adapter, upload, zipped
from tests.hub_server import Fault, HubServer


def test_what_was_checked_is_loaded(
    hub: HubServer, folder: Path, tiny: E2Rank, facts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Guards against files that nobody checked, wrong names after a download, and a cache that needs the network."""
    zipped("pytorch_model.bin")(folder)
    put("evil.py", "raise SystemExit")(folder)
    commit = upload(hub, folder)
    cache = str(tmp_path / "cache")
    model = E2Rank("org/model", device="cpu", cache_folder=cache)
    assert (model.encode(facts) == tiny.encode(facts)).all()
    assert model.transformers_model.name_or_path == "org/model"
    assert (model.model_card_data.base_model, model.model_card_data.base_model_revision) == ("org/model", commit)
    assert not hub.sent("GET", r"pytorch_model\.bin|\.py$|LICENSE")
    assert not mark(folder).exists()
    put("2_ListwiseRerank/config.json", "[]")(folder)
    repository = hub.repositories["org/model"]
    files = {**repository.commits[commit], "2_ListwiseRerank/config.json": b"[]"}
    hub.commit(repository, "main", files)
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        E2Rank("org/model", device="cpu", cache_folder=cache)
    E2Rank("org/model", device="cpu", cache_folder=cache, revision=commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = E2Rank("org/model", device="cpu", cache_folder=cache, revision=commit, local_files_only=True)
    assert (again.encode(facts) == tiny.encode(facts)).all()
    with pytest.raises(OSError):
        E2Rank("org/model", device="cpu", cache_folder=str(tmp_path / "empty"))


def test_known_checkpoints_keep_their_row(
    hub: HubServer, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Guards against a released checkpoint that is wired by a guess, since its folder in the cache is called a hash."""
    upload(hub, checkpoint, "Alibaba-NLP/E2Rank-0.6B")
    with caplog.at_level(logging.WARNING, "e2rank_st"):
        model = E2Rank("Alibaba-NLP/E2Rank-0.6B", device="cpu", cache_folder=str(tmp_path))
    assert not [record for record in caplog.records if record.name.startswith("e2rank_st")]
    assert model.model_card_data.base_model == "Alibaba-NLP/E2Rank-0.6B"


def test_an_adapter_and_its_base(
    hub: HubServer, checkpoint: Path, sound: Path, tiny: E2Rank, facts: list[str], tmp_path: Path
):
    """Guards against an adapter of the Hub that does not find its base, and a base that nobody checked."""
    pytest.importorskip("peft")
    upload(hub, checkpoint, "org/base")
    upload(hub, save_adapter(sound, tmp_path / "adapter", "org/base"), "org/adapter")
    model = E2Rank("org/adapter", device="cpu", cache_folder=str(tmp_path / "cache"))
    assert abs(model.encode(facts) - tiny.encode(facts)).max() < 1e-6
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "model.safetensors"}
    # transformers asks for the base at the revision of the adapter
    hub.commit(hub.repositories["org/base"], "v1", files)
    hub.repositories["org/adapter"].history["v1"] = hub.repositories["org/adapter"].history["main"]
    with pytest.raises(ValueError, match="holds no weights"):
        E2Rank("org/adapter", revision="v1", device="cpu", cache_folder=str(tmp_path / "cache"))
    hub.commit(hub.repositories["org/base"], "main", files)
    with pytest.raises(ValueError, match="holds no weights"):
        E2Rank("org/adapter", device="cpu", cache_folder=str(tmp_path / "cache"))


def test_an_adapter_goes_into_the_given_cache(hub: HubServer, checkpoint: Path, sound: Path, tmp_path: Path):
    """Guards against files in the user's own cache: transformers looks for an adapter there, unless it is told."""
    pytest.importorskip("peft")
    upload(hub, checkpoint, "org/base")
    upload(hub, save_adapter(sound, tmp_path / "adapter", "org/base"), "org/kept-elsewhere")
    E2Rank("org/kept-elsewhere", device="cpu", cache_folder=str(tmp_path / "cache"))
    assert (tmp_path / "cache" / "models--org--kept-elsewhere").is_dir()
    assert not (Path(HF_HUB_CACHE) / "models--org--kept-elsewhere").exists()


def test_a_branch_that_moves_behind_the_check(
    hub: HubServer, folder: Path, tiny: E2Rank, facts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Guards against files of a newer commit than the one that was checked."""
    commit, cache = upload(hub, folder), tmp_path / "cache"

    def check_and_move(checked: Path) -> str:
        kind = check_folder(checked)
        (cache / "models--org--model" / "refs" / "main").write_text("0" * 40)
        return kind

    monkeypatch.setattr(model_module, "check_folder", check_and_move)
    model = E2Rank("org/model", device="cpu", cache_folder=str(cache))
    assert (model.encode(facts) == tiny.encode(facts)).all()
    assert commit in str(next((cache / "models--org--model" / "snapshots").iterdir()))


def test_a_download_does_not_wait_for_years(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Guards against a server that tells the client to sleep until long after the user has gone."""
    upload(hub, folder)
    hub.faults.append(Fault("GET", "resolve.*safetensors", status=429, retry_after="999999999", times=1))
    monkeypatch.setattr(hub_module, "LONGEST_WAIT", 0)
    assert E2Rank("org/model", device="cpu", cache_folder=str(tmp_path / "cache"))
    assert hub.sent("GET", "resolve.*safetensors") > 1, "the premise: it was asked again"
