"""The files of a Space: those of the repository are up to date, and its app runs."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from typer.testing import CliRunner

import push_to_hub
from e2rank_st.cli.demo import LIBRARY
from e2rank_st.publishing.space import GRADIO, write_space
from tests import ROOT

FOLDER = ROOT / "model_card" / "space"
REPO_ID = re.search(r"^REPO_ID \?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
# The app itself, on a library of ten docstrings.
SMALL = """
import runpy, sys
from e2rank_st.data import docstrings
docstrings.collect = lambda: [docstrings.Docstring(f"m.f{n}", f"Counts to {n}. {{7*7}} <b>.") for n in range(10)]
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_the_files_are_up_to_date(tmp_path: Path):
    """Guards against a Space of an older version, and a header that the Hub does not read."""
    write_space(REPO_ID, tmp_path)
    files = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert files == {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}, "make publish-check"
    header = yaml.safe_load(files["README.md"].split("---")[1])
    assert (header["sdk"], header["app_file"], header["models"]) == ("gradio", "app.py", [REPO_ID])
    assert len(header["short_description"]) <= 60
    extra = re.search(r'^web = \["(.*)"\]$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert Version(GRADIO) in Requirement(extra).specifier


def test_a_repository_that_is_none(tmp_path: Path):
    """Guards against code in a name, which the app would run."""
    with pytest.raises(ValueError, match="a Hub id looks like org/name"):
        write_space('org/name"); import this #', tmp_path / "space")
    assert not (tmp_path / "space").exists()


def test_publishing_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against an option that is forgotten, or a Space of a different model."""
    monkeypatch.setattr("e2rank_st.publishing.publish_model", lambda *values, **options: None)
    result = CliRunner().invoke(push_to_hub.app, ["model", "--repo-id", "org/name", "--space", str(tmp_path / "space")])
    assert result.exit_code == 0, result.stderr
    assert 'E2Rank("org/name")' in (tmp_path / "space" / "app.py").read_text(encoding="utf-8")


def test_the_app_runs(saved: Path, tmp_path: Path):
    """Guards against a Space that does not start: the app as it is, and the model in the cache of the Hub."""
    pytest.importorskip("gradio")
    from gradio_client import Client

    cached, commit = tmp_path / "home" / "hub" / f"models--{REPO_ID.replace('/', '--')}", "0" * 40
    shutil.copytree(saved, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SMALL, str(FOLDER / "app.py")]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        said = ""
        for line in process.stderr:
            said += line
            if "the page is at" in line:
                break
        assert "the page is at" in said, said
        client = Client(line.split()[4], verbose=False, analytics_enabled=False)
        found = client.predict("count", LIBRARY, "", "lines", 3, 0, api_name="/compare")
        assert "10 of 10 documents" in found[0] and "m.f3" in found[2]
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    finally:
        process.kill()
