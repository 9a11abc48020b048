"""A loopback Hub and the real client set on it."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi

from e2rank_st import E2Rank
from tests import ROOT
from tests.hub_server import HubServer
from tests.toy import with_trained_adapter


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub
        hub.shutdown()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between tries, ours and the client's. Nobody waits them."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def api(server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: list[float]) -> HfApi:
    """The client, as HF_ENDPOINT, HF_HUB_DISABLE_XET=1 and HF_TOKEN would set it before it is imported."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", server.token)
    return HfApi(endpoint=server.url)


CARD = """---
license: apache-2.0
library_name: sentence-transformers
pipeline_tag: text-ranking
base_model: {base}
tags: [sentence-transformers, feature-extraction, e2rank]
---
# Tiny

![curves](figures/curves.png)

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{{{{repo_id}}}}", trust_remote_code=True)
ranking = model.rerank("how long do fleas live", ["A flea lives 100 days.", "Iron melts."])
```

```python
print(len(ranking))
```
"""


@pytest.fixture(scope="session")
def saved(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder. Shared: a test that changes it takes a copy."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny.save_pretrained(str(folder), create_model_card=False)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    return folder


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete card with a figure."""
    path = tmp_path_factory.mktemp("card") / "README.md"
    path.write_text(CARD.format(base="org/tiny-base"), encoding="utf-8")
    (path.parent / "figures").mkdir()
    (path.parent / "figures" / "curves.png").write_bytes(b"\x89PNG")
    return path


@pytest.fixture(scope="session")
def adapter(bundled: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the bundled model's base, as training writes it."""
    model = with_trained_adapter(bundled).eval()
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    model.save_pretrained(str(folder), create_model_card=False)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    text = CARD.format(base="sentence-transformers/all-MiniLM-L6-v2").replace("![curves](figures/curves.png)", "")
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder
