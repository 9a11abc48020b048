"""push_to_hub.py from end to end: built, verified on a stranger's machine, published, and loaded from there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

import e2rank_st
import push_to_hub
from e2rank_st import E2Rank
from e2rank_st.publishing import Source, Target, build, verify
from tests import ROOT
from tests.hub_server import HubServer

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


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(e2rank_st.__file__).parents[1]), **more}


def push(*arguments: str, **more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "push_to_hub.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(**more))


def test_published_and_loaded_from_the_hub(server: HubServer, saved: Path, card: Path, tiny: E2Rank, facts, tmp_path):
    """Guards against a repository that only its author can load; and against a token in what is printed."""
    hub = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": server.token}
    hub |= {"HF_HOME": str(tmp_path / "home")}
    done = push(str(saved), "--repo-id", "org/e2rank", "--card", str(card), "--output", str(tmp_path / "out"), **hub)
    assert done.returncode == 0, done.stderr
    assert server.token not in done.stdout + done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [
        line[2] for line in lines if len(line) == 3 and line[0].startswith(("main", "embedding", "saved", "Auto"))
    ] == (["passed"] * 4)
    assert [line[0] for line in lines[-2:]] == ["org/e2rank@main", "org/e2rank@embedding"]
    command = [sys.executable, "-c", RELOAD, json.dumps(facts)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(**hub))
    assert loaded.returncode == 0, loaded.stderr
    remote, vectors, own = json.loads(loaded.stdout.splitlines()[-1])
    expected = tiny.rerank("fleas", facts)
    for ranking in (remote, own):
        assert [hit["corpus_id"] for hit in ranking] == [hit["corpus_id"] for hit in expected]
        np.testing.assert_allclose([hit["score"] for hit in ranking], [hit["score"] for hit in expected], atol=1e-6)
    np.testing.assert_allclose(vectors, tiny.encode_query(facts), atol=1e-6)


def test_an_adapter_without_the_hub(adapter: Path, tmp_path: Path):
    """Guards against an adapter that only loads where it was trained: `make publish-check`, with --adapter."""
    done = push(str(adapter), "--repo-id", "org/e2rank", "--adapter", "--dry-run", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\tpassed") == 5
    assert "nothing was uploaded" in done.stdout
    assert "HF_HUB_OFFLINE" in done.stderr


def test_failed_checks_say_what_differs(saved: Path, card: Path, tmp_path: Path):
    """Guards against a build that goes out although it differs: weights, pooling and an example that does not run."""
    folder = tmp_path / "card"
    shutil.copytree(card.parent, folder)
    (folder / "README.md").write_text(card.read_text() + "\n```python\nmodel.sing()\n```\n")
    built, model = build(Source(str(saved), "org/e2rank", folder / "README.md"), tmp_path / "build")
    pooling = built.folders["embedding"] / "1_Pooling" / "config.json"
    values = json.loads(pooling.read_text())
    pooling.unlink()  # linked to that of main
    pooling.write_text(json.dumps(values | {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}))
    files, embedding, plain, remote, again = verify(built, model)
    assert "files of embedding have changed" in files.problem
    assert "encode_query differs by" in embedding.problem
    assert embedding.difference > 1e-3
    assert (plain.problem, remote.problem) == ("", "")
    assert "has no attribute 'sing'" in again.problem
    assert "Python block 3 of the card of main" in again.problem


def test_no_such_folder(capsys: pytest.CaptureFixture):
    """Guards against a traceback where a folder is missing; the message says so."""
    with pytest.raises(typer.Exit), push_to_hub._one_line_errors():
        build(Source("models/no-such-model", "org/e2rank"), Path("unused"))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "push_to_hub: error: models/no-such-model is neither a folder here nor a Hub id" in printed.err


def test_account_comes_before_the_build(capsys: pytest.CaptureFixture):
    """Guards against minutes of building for somebody who cannot publish; here the Hub is out of reach."""
    target = Target("org/e2rank", "1.2.3")
    with pytest.raises(typer.Exit), push_to_hub._one_line_errors():
        push_to_hub._run(Source("models/no-such-model", "org/e2rank"), target, Path("unused"), dry_run=False)
    assert "checking the token" in capsys.readouterr().err
