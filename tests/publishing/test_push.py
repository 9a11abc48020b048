"""push_to_hub.py from end to end: built, verified on a stranger's machine, published, and loaded from there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner, Result

import e2rank_st.publishing
import push_to_hub
from e2rank_st import E2Rank
from e2rank_st.bundled import BUNDLED
from e2rank_st.publishing import Check, Source, Target, build, publish_model, report, verify
from tests import ROOT
from tests.hub_server import HubServer

CARD = push_to_hub.CARDS / BUNDLED["bundled"].name / "README.md"

RELOAD = """
import json, sys
sys.modules["e2rank_st"] = None  # an import of the package would fail
from sentence_transformers import SentenceTransformer
documents = json.loads(sys.argv[1])
plain = SentenceTransformer("org/e2rank", trust_remote_code=True, device="cpu")
stock = SentenceTransformer("org/e2rank", revision="embedding", device="cpu")
results = [plain.rerank("fleas", documents), stock.encode_query(documents).tolist()]
del sys.modules["e2rank_st"]
from e2rank_st import E2Rank
results.append(E2Rank("org/e2rank", device="cpu").rerank("fleas", documents))
print(json.dumps(results))
"""


def push(*arguments: str) -> Result:
    return CliRunner().invoke(push_to_hub.app, [*arguments, "--repo-id", "org/e2rank"])


def python(*arguments: str, **more: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(e2rank_st.__file__).parents[1]), **more}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


def test_published_and_loaded_from_the_hub(
    server: HubServer, api: HfApi, saved, card, tiny: E2Rank, facts, tmp_path, capsys
):
    """Guards against a repository that only its author can load; and against a token in the output."""
    publish_model(Source(str(saved), "org/e2rank", card), Target("org/e2rank", "1.0.0"), tmp_path / "out", api=api)
    printed = capsys.readouterr()
    assert server.token not in printed.out + printed.err
    assert printed.out.count("\tpassed") == 5
    assert "\tnot run; --run-card runs it" in printed.out
    assert [line.split("\t")[0] for line in printed.out.splitlines()[-2:]] == ["main", "embedding"]
    hub = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": server.token}
    loaded = python("-c", RELOAD, json.dumps(facts), HF_HOME=str(tmp_path / "home"), **hub)
    assert loaded.returncode == 0, loaded.stderr
    remote, vectors, own = json.loads(loaded.stdout.splitlines()[-1])
    expected = tiny.rerank("fleas", facts)
    for ranking in (remote, own):
        assert [hit["corpus_id"] for hit in ranking] == [hit["corpus_id"] for hit in expected]
        np.testing.assert_allclose([hit["score"] for hit in ranking], [hit["score"] for hit in expected], atol=1e-6)
    np.testing.assert_allclose(vectors, tiny.encode_query(facts), atol=1e-6)


def test_an_adapter_and_checks_that_fail(adapter: Path, tmp_path: Path):
    """Guards against an adapter that loads only where it was trained, and a build that goes out although it differs."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    with (folder / "README.md").open("a") as file:
        file.write("\n```python\nimport e2rank_st\n\ne2rank_st.sing()\n```\n")
    built, model = build(Source(str(folder), "org/e2rank", keeps_adapter=True), tmp_path / "build")
    pooling = built.folders["embedding"] / "1_Pooling" / "config.json"
    values = json.loads(pooling.read_text())
    pooling.unlink()  # linked to that of main
    pooling.write_text(json.dumps(values | {"pooling_mode": "cls"}))
    files, embedding, plain, remote, again, stranger, blocks = verify(built, model, run_card=True)
    assert "files of embedding have changed" in files.problem
    assert "encode_query differs by" in embedding.problem
    assert embedding.difference > 1e-3
    assert (plain.problem, remote.problem, again.problem, stranger.problem) == ("", "", "", "")
    assert "has no attribute 'sing'" in blocks.problem
    assert "Python block 1 of the card of main" in blocks.problem


@pytest.mark.parametrize("problem", ["", "differs"])
def test_dry_run(saved: Path, card: Path, monkeypatch, problem):
    """Guards against an upload by a dry run, and a success after a failed check; the Hub is out of reach here."""
    monkeypatch.setattr(report, "verify", lambda *_: [Check("all", problem=problem)])
    done = push(str(saved), "--card", str(card), "--dry-run")
    assert done.exit_code == bool(problem), done.stderr
    assert ("1 of 1 checks failed, so nothing is uploaded: differs" in done.stderr) == bool(problem)
    assert ("nothing was uploaded" in done.stdout) == (not problem)


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        ([], False),
        (["--card", "CARD"], False),
        (["--card", "CARD", "--run-card"], True),
        (["--card", str(CARD)], True),
    ],
)
def test_whose_card_is_run(saved: Path, card: Path, tmp_path: Path, monkeypatch, arguments, runs):
    """Guards against a stranger's README that runs here, whatever it says that it is."""
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    copied = tmp_path / "model_card" / "README.md"
    copied.parent.mkdir()
    for path in (folder / "README.md", copied):
        shutil.copyfile(CARD, path)
    seen = []
    monkeypatch.setattr(e2rank_st.publishing, "publish_model", lambda *_, run_card, **__: seen.append(run_card))
    arguments = [str(copied) if argument == "CARD" else argument for argument in arguments]
    assert push(str(folder), *arguments, "--dry-run").exit_code == 0
    assert seen == [runs]


def test_the_bundled_model_runs_its_card(monkeypatch):
    """Guards against a card of ours that fails for its first reader."""
    seen = []
    monkeypatch.setattr(e2rank_st.publishing, "publish_model", lambda *_, run_card, **__: seen.append(run_card))
    assert push(str(BUNDLED["bundled"].folder), "--dry-run").exit_code == 0
    assert seen == [True]


def test_errors_take_one_line(tmp_path: Path, monkeypatch):
    """Guards against a traceback where a folder is missing, and minutes of building for somebody without a token."""
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    missing = str(tmp_path / "none")
    for arguments, message in ((["--dry-run"], f"{missing} is neither a folder here"), ([], "checking the token: ")):
        done = push(missing, *arguments)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith(f"push_to_hub: error: {message}")
        assert done.stderr.count("\n") == 1


def test_help_is_quick():
    """Guards against seconds of importing torch before a word of help."""
    done = python("-X", "importtime", str(ROOT / "push_to_hub.py"), "--help")
    assert "Examples:" in done.stdout
    assert "torch" not in done.stderr
