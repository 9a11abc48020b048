"""Sound model folders, and a loopback Hub that the real client talks to."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as constants
import huggingface_hub.hf_api as hf_api
import pytest
import transformers.utils.hub as transformers_hub

from e2rank_st import E2Rank
from tests.folders.hostile import save_adapter
from tests.hub_server import HubServer


@pytest.fixture(scope="session")
def sound(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model. Shared: a test that changes it takes a copy."""
    folder = tmp_path_factory.mktemp("sound") / "model"
    tiny.save_pretrained(str(folder))
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


@pytest.fixture
def adapter(checkpoint: Path, sound: Path, tmp_path: Path) -> Path:
    """An adapter that changes nothing yet, on the tiny checkpoint."""
    return save_adapter(sound, tmp_path / "adapter", str(checkpoint))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub on this machine's loopback, for the client in this process, with a cache of its own."""
    with HubServer() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        for api in (hf_api.api, transformers_hub.hf_api()):  # both were made with the endpoint of their first use
            monkeypatch.setattr(api, "endpoint", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server
        server.shutdown()
