"""The trial before loading: what would keep a process busy for ever is refused in time."""

import json
import shutil
import time
from pathlib import Path

import pytest

from e2rank_st.publishing import Source, build, trial
from e2rank_st.publishing.trial import check_effort


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.mark.parametrize("name", ["num_hidden_layers", "n_layer", "num_local_experts", "encoder_layers", "nested"])
def test_more_layers_than_weights(folder: Path, card: Path, tmp_path: Path, name: str):
    """Guards against hours of building layers of which there are no weights."""
    config = json.loads((folder / "config.json").read_text())
    more = {"text_config": {"num_hidden_layers": 10**7}} if name == "nested" else {name: 10**7}
    (folder / "config.json").write_text(json.dumps(config | more))
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"config\.json sets '\w+' to 10000000, and there are \d+ weights\. Copy"):
        build(Source(str(folder), "org/e2rank", card), tmp_path / "build")
    assert time.monotonic() - start < 10


def test_a_template_without_end(folder: Path, card: Path, tmp_path: Path, monkeypatch):
    """Guards against a chat template that loops for minutes in the publisher's process, where nobody can stop it."""
    check_effort(folder)  # the premise: without the template it passes
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with (folder / "chat_template.jinja").open("a") as file:
        file.write(loop)
    monkeypatch.setattr(trial, "SECONDS", 4.0)
    with pytest.raises(
        ValueError, match=r"chat template does not work: it did not end within 4 s, and was stopped\. L"
    ):
        build(Source(str(folder), "org/e2rank", card), tmp_path / "build")
