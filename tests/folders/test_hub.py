"""A Hub id becomes a checked snapshot, and the model keeps its names."""

import logging
from pathlib import Path

import huggingface_hub.constants as constants
import pytest

from e2rank_st import E2Rank
from tests.folders.hostile import mark, put, save_adapter, upload, zipped
from tests.hub_server import HubServer


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
    hub.commit(hub.repositories["org/base"], "main", files)
    with pytest.raises(ValueError, match="holds no weights"):
        E2Rank("org/adapter", device="cpu", cache_folder=str(tmp_path / "cache"))
