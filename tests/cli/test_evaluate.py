"""The commands e2rank eval: options that reach the library, tables that people read, and exit statuses."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import e2rank_st
from e2rank_st.benchmarks import reranking
from e2rank_st.cli import evaluate
from e2rank_st.cli.app import app
from tests import ROOT
from tests.beir import write_collection
from tests.benchmarks.data import write_task

COMMANDS = typer.main.get_command(evaluate.app).commands
SCRIPTS = {
    "run_mteb": "mteb", "run_reranking": "rerank", "report": "report", "summary": "table", "submission": "submit",
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults write into the current folder."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy dl21 with its candidates, and a toy NFCorpus."""
    folder = write_task(tmp_path_factory.mktemp("data"))
    write_collection(folder / "nfcorpus")
    return folder


def test_rerank_shows_and_writes(data: Path, checkpoint: Path, tmp_path: Path):
    """Guards against an option that is read and forgotten, and a table that says something else than its file."""
    options = ["--data-dir", data, "--model", checkpoint, "--baseline", checkpoint, "--device", "cpu"]
    options += ["--systems", "embedding,listwise", "-k", "2,4", "--embedding-queries", 0, "--limit", 4]
    done = run("rerank", "--tasks", "dl21", *options, "--output-dir", "out", "--runs", "runs", "--top-n", 5)
    assert done.exit_code == 0, done.stderr
    title, *rows = done.stdout.splitlines()
    assert title == "# DL21, bm25 top 5, 4 queries, compared with baseline_embedding · local · partial"
    assert done.stderr.endswith("wrote out/dl21-bm25.json\n")
    result = reranking.Result.read(tmp_path / "out" / "dl21-bm25.json")
    assert [row.split("\t")[0] for row in rows] == list(result.systems)
    names = ["embedding", "listwise_k2", "listwise_k4"]
    assert list(result.systems) == ["first_stage", *(f"baseline_{name}" for name in names), *names]
    scores = [f"{100 * system.scores['ndcg@10']:.2f}" for system in result.systems.values()]
    assert [row.split("\t")[1] for row in rows] == scores
    assert (result.settings["top_n"], result.settings["limit"]) == (5, 4)
    assert len(list((tmp_path / "runs").iterdir())) == 7


def test_a_failed_task_is_told_and_the_others_run(data: Path, checkpoint: Path):
    """Guards against a run that fails with status 0, and against a night's results that one bad file costs."""
    options = ["--data-dir", data, "--model", checkpoint, "--device", "cpu", "--systems", "embedding"]
    done = run("rerank", "--tasks", "dl19,dl21", *options, "--embedding-queries", 0)
    assert done.exit_code == 1
    assert "dl19: error: dl19: no dl19_bm25_top100.jsonl" in done.stderr
    assert done.stderr.endswith("1 of 2 tasks failed.\n")
    assert done.stdout.startswith("# DL21, bm25 top 7")
    assert [path.name for path in Path("results").iterdir()] == ["dl21-bm25.json"]


def test_mteb_shows_and_writes(data: Path, checkpoint: Path, tmp_path: Path):
    """Guards against an option that is read and forgotten, and against a failed task that nobody sees."""
    pytest.importorskip("mteb")
    options = ["--data-dir", data, "--model", checkpoint, "--device", "cpu", "--limit", 2, "--output-dir", "out"]
    done = run("mteb", "--tasks", "SciFact,NFCorpus", "--mode", "embedding", "--name", "org/toy", *options)
    assert done.exit_code == 1
    title, second, first = done.stdout.splitlines()
    assert title == "# org/toy"
    assert first.startswith("NFCorpus\tembedding\tndcg@10\t") and first.endswith("\tdone, local, partial")
    assert second.split("\t")[0] == "SciFact" and second.endswith("\tfailed")
    error = "FileNotFoundError: --data-dir has no folder SciFact or scifact for the task SciFact."
    assert f"SciFact embedding: failed: {error}" in done.stderr
    assert [path.name for path in tmp_path.glob("out/org__toy/*")] == ["NFCorpus.embedding.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rerank", "Got nothing to evaluate on"),
        ("rerank --tasks covd", "did you mean 'covid'"),
        ("rerank --tasks dl19 --model ./nowhere", "neither a folder here nor a Hub id"),
        ("rerank --tasks dl19 --limit 0", "Invalid value for '--limit'"),
        ("rerank --tasks dl19 --num-prompt-documents 3,many", "got 'many'; give whole numbers"),
        ("rerank --tasks dl19 --num-prompt-documents 3,0", "got '0'; give whole numbers from 1"),
        ("rerank --tasks dl19 --systems listwise,bm25", "got 'bm25'; give some of embedding, rocchio, listwise"),
        ("mteb", "Got no tasks"),
        ("mteb --tasks NFCorpu", "Did you mean: 'NFCorpus'"),
        ("mteb --tasks NFCorpus --model no/such/folder", "neither a folder here nor a Hub id"),
        ("mteb --tasks NFCorpus --mode both", "got 'both'; give some of embedding, two-stage"),
        ("mteb --tasks NFCorpus --data-dir nowhere", "'nowhere' does not exist"),
        ("report", "Missing argument 'RESULTS...'"),
        ("report results --only all", "got 'all'; give some of scores"),
        ("report results --figure-format gif", "got 'gif'; give some of png"),
    ],
)
def test_usage_errors(arguments: str, message: str):
    """Guards against a run that starts and means something else; such an error has the status 2."""
    if arguments.startswith("mteb"):
        pytest.importorskip("mteb")
    done = run(*arguments.split())
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch):
    """Guards against a traceback where the extra is not installed."""
    monkeypatch.setitem(sys.modules, "mteb", None)
    for name in [name for name in sys.modules if name.startswith("e2rank_st.benchmarks.mteb")]:
        monkeypatch.delitem(sys.modules, name)
    done = run("mteb", "--tasks", "NFCorpus", "--output-dir", "out")
    assert done.exit_code == 1
    assert "Evaluation needs the package mteb: pip install 'e2rank-st[eval]'" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse(name: str):
    """Guards against a help text that shows what does not work."""
    Path("data").mkdir()
    shown = run(name, "--help")
    assert shown.exit_code == 0
    examples = re.findall(r"^ +e2rank eval (.+)$", shown.stdout, re.MULTILINE)
    assert examples
    for example in examples:
        command, *arguments = shlex.split(example)
        assert command == name
        COMMANDS[command].make_context(command, arguments)


@pytest.mark.parametrize(("script", "command"), SCRIPTS.items())
def test_scripts_are_the_commands(script: str, command: str):
    """Guards against a script with options or an example of its own."""
    text = (ROOT / "eval" / f"{script}.py").read_text(encoding="utf-8")
    assert f"run_script({command})" in text
    example = re.search(rf"    python eval/{script}\.py (.+?)\n\n", text, re.DOTALL)[1].replace("\\\n", " ")
    COMMANDS[command].make_context(command, shlex.split(example))


def test_a_script_runs_and_help_is_fast():
    """Guards against a script that does not start, and against torch where only help is asked for."""
    path = str(Path(e2rank_st.__file__).parents[1])
    code = f"import sys; sys.argv = ['report.py', 'nowhere']; sys.path.insert(0, {path!r}); "
    code += "from e2rank_st.cli.evaluate import report, run_script; assert 'torch' not in sys.modules; "
    done = subprocess.run(
        [sys.executable, "-c", code + "run_script(report)"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "report.py: error: nowhere: No such file or directory\n")
