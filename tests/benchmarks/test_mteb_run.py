"""Runs of MTEB: results that say what they are, kept when a run goes on, and failures that are told."""

import copy
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ROOT

pq = pytest.importorskip("pyarrow.parquet")
mteb = pytest.importorskip("mteb")

from mteb.mocks.mock_tasks import MockSTSTask  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.base.modules import Transformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: E402

from e2rank_st import E2Rank  # noqa: E402
from e2rank_st.benchmarks import mteb_run  # noqa: E402
from e2rank_st.benchmarks.mteb_model import MODES  # noqa: E402
from e2rank_st.benchmarks.mteb_run import Options, run  # noqa: E402
from e2rank_st.benchmarks.results import Result  # noqa: E402
from e2rank_st.evaluation.metrics import ndcg  # noqa: E402
from e2rank_st.modeling_e2rank import ListwiseRerank  # noqa: E402
from e2rank_st.storage import folder_sha256  # noqa: E402
from tests.beir import write_collection  # noqa: E402

LONGEST_PROMPT = ListwiseRerank().max_prompt_tokens
SCRIPT = ROOT / "eval" / "run_mteb.py"
NFCORPUS: dict[str, Any] = {"tasks": ["NFCorpus"]}
TEXT_ONLY: dict[str, Any] = {
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
PLAIN: dict[str, Any] = {"modes": ["embedding"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_collection(folder / "nfcorpus")
    write_collection(folder / "SciFact", seed=1)
    return folder


@pytest.fixture(scope="module")
def toy(checkpoint: Path, data: Path) -> dict[str, Any]:
    """Options of a run on the toy data."""
    return {"model": str(checkpoint), "data_dir": data, "device": "cpu"}


@pytest.fixture(scope="module")
def output(toy: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished results of NFCorpus in both modes; many tests look at it."""
    folder = tmp_path_factory.mktemp("output")
    states = [outcome.state for outcome in run(Options(output_dir=folder, **toy, **NFCORPUS))]
    assert states == ["done, local", "done, local"]
    return folder


@pytest.fixture(scope="module")
def found(output: Path) -> dict[str, Result]:
    """Its results by mode."""
    return {mode: result for (_, mode), result in results(output).items()}


def test_an_embedding_model_as_baseline(toy: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guards against a baseline that the model has to be trained for, and a warning about prompts that are not used."""
    modules = [Transformer(toy["model"], max_seq_length=64, **TEXT_ONLY), Pooling(32, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "model"))
    options = toy | {"model": str(tmp_path / "model"), "output_dir": tmp_path / "out"}
    assert [outcome.state for outcome in run(Options(**options, **NFCORPUS, **PLAIN))] == ["done, local"]
    assert "listwise" not in caplog.text


def results(folder: Path) -> dict[tuple[str, str], Result]:
    read = [Result.read(path) for path in sorted(folder.glob("*/*.json"))]
    return {(result.task, *result.systems): result for result in read}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_result_says_what_it_is(found: dict[str, Result], output: Path, data: Path):
    """Guards against a number that nobody can place, and against one that tells of the machine it was measured on."""
    assert list(found) == list(MODES)
    for mode, result in found.items():
        system = result.systems[mode]
        assert (result.main_metric, result.queries) == ("ndcg@10", 6)
        main = system.scores["ndcg@10"]
        assert main == pytest.approx(math.fsum(system.per_query.values()) / 6, abs=1e-5)
        assert main == result.mteb["result"]["scores"]["test"][0]["main_score"]
        assert not [name for name in system.scores if "_at_" in name or name.startswith("nauc")]
        assert (result.local, result.partial, result.settings["seed"]) == (True, False, 42)
        assert result.models["model"]["name"] == "local/tiny-qwen3"
        assert result.models["model"]["revision"].startswith("state-")
        local = f"local-sha256-{folder_sha256(data / 'nfcorpus')[:12]}"
        assert result.sources == {"NFCorpus": f"mteb/nfcorpus@{local}"}
        assert result.mteb["result"]["dataset_revision"] == local
        assert result.environment["versions"]["mteb"] == mteb.__version__
        assert result.environment["hardware"]["device"] and result.seconds > 0
        assert result.models["model"]["prompts"]["query"].startswith("Instruct: ")
        mteb.results.TaskResult.from_dict(result.mteb["result"])
    plain, reranked = (result.systems[mode] for mode, result in found.items())
    assert (plain.kind, plain.parameters, reranked.kind) == ("embedding", {}, "listwise")
    assert (reranked.parameters["max_prompt_tokens"], reranked.parameters["rerank_depth"]) == (LONGEST_PROMPT, 100)
    written = "".join(path.read_text(encoding="utf-8") for path in output.glob("*/*"))
    assert str(data) not in written and str(output) not in written


def test_another_model_of_the_same_name_is_not_taken_for_it(toy: dict[str, Any], tiny: E2Rank, tmp_path: Path):
    """Guards against the old scores of a folder that was trained further, under a name and revision given by hand."""
    again = copy.deepcopy(tiny)
    named = {**toy, "model": str(tmp_path / "mine"), "name": "org/mine", "revision": "1"}
    outcomes = []
    for _ in range(2):
        again.save(str(tmp_path / "mine"))
        outcomes += run(Options(output_dir=tmp_path / "out", **named, **NFCORPUS, **PLAIN))
        with torch.no_grad():
            next(again.parameters()).mul_(1.5).add_(0.1)
    assert [outcome.state for outcome in outcomes] == ["done, local", "failed"]
    assert "There is a result already, and it differs in settings" in outcomes[1].error


def test_per_query_scores_are_those_of_the_ranking(found: dict[str, Result], tiny: E2Rank, data: Path):
    """Guards against per-query scores of another metric or another order of queries, by our own nDCG."""
    recorded = found["embedding"].systems["embedding"].per_query
    folder = data / "nfcorpus"
    corpus, queries, qrels = (
        pq.read_table(folder / f"{name}.parquet").to_pydict() for name in ("corpus", "queries", "qrels_test")
    )
    prompt = "Instruct: Given a question, retrieve relevant documents that best answer the question\nQuery:"
    cosines = tiny.encode_query(queries["text"], prompt=prompt) @ tiny.encode_document(corpus["text"]).T
    relevant = dict(zip(qrels["query-id"], qrels["corpus-id"], strict=True))
    for query, scores in zip(queries["_id"], cosines, strict=True):
        ids = [corpus["_id"][row] for row in scores.argsort()[::-1]]
        assert recorded[query] == pytest.approx(ndcg([float(id_ == relevant[query]) for id_ in ids], [1.0]))


def test_finished_tasks_are_kept(toy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against work that is done twice, and against half a result, when a run is stopped in its second task."""
    options = Options(output_dir=tmp_path, tasks=["NFCorpus", "SciFact"], **toy)
    original = mteb_run.E2RankMTEB.index

    def stopped(self: Any, *arguments: Any, task_metadata: Any, **options: Any) -> None:
        if task_metadata.name == "SciFact":
            raise KeyboardInterrupt
        original(self, *arguments, task_metadata=task_metadata, **options)

    monkeypatch.setattr(mteb_run.E2RankMTEB, "index", stopped)
    with pytest.raises(KeyboardInterrupt):
        list(run(options))
    before = times(tmp_path)
    assert sorted(path.name for path in before) == ["NFCorpus.embedding.json", "NFCorpus.two-stage.json"]
    monkeypatch.undo()
    states = [outcome.state for outcome in run(options)]
    assert states == ["kept, local", "kept, local", "done, local", "done, local"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_goes_on_after_a_kill(toy: dict[str, Any], tmp_path: Path):
    """Guards against what only a real kill shows: nothing is cleaned up, and the next run has to cope."""
    arguments = [sys.executable, str(SCRIPT), "--model", toy["model"], "--data-dir", str(toy["data_dir"])]
    arguments += ["--tasks", "NFCorpus,SciFact", "--output-dir", str(tmp_path), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("*/NFCorpus*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}
    assert 1 <= len(first) < 4
    states = [outcome.state for outcome in run(Options(output_dir=tmp_path, tasks=["NFCorpus", "SciFact"], **toy))]
    assert states.count("kept, local") == len(first) == 4 - states.count("done, local")
    assert len(results(tmp_path)) == 4
    assert {path: path.stat().st_mtime_ns for path in first} == first


def test_another_setting_is_another_result(output: Path, toy: dict[str, Any], tmp_path: Path):
    """Guards against a kept result that was measured with another K, and against one that is replaced unasked."""
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    before = results(tmp_path)
    options = Options(output_dir=tmp_path, prompt_documents=3, **toy, **NFCORPUS)
    kept, refused = run(options)
    assert kept.state == "kept, local"  # K is no setting of this one
    assert "There is a result already, and it differs in settings" in refused.error
    assert results(tmp_path) == before
    kept, again = run(replace(options, overwrite=True, modes=["two-stage", "two-stage"]))
    assert (kept.state, again.state) == ("done, local", "done, local")
    assert results(tmp_path)["NFCorpus", "two-stage"].settings["prompt_documents"] == 3


def test_other_data_under_the_same_name(toy: dict[str, Any], tmp_path: Path):
    """Guards against the cache of datasets, which does not see that the files of a folder have changed."""
    found = []
    for number in (4, 7):
        folder = write_collection(tmp_path / f"data {number}" / "nfcorpus", number=number).parent
        same = {**toy, "data_dir": folder, "output_dir": tmp_path / f"results {number}"}
        list(run(Options(**same, **NFCORPUS, **PLAIN)))
        found.append(results(same["output_dir"])["NFCorpus", "embedding"])
    assert [result.queries for result in found] == [4, 7]
    assert found[0].sources != found[1].sources


def test_few_queries_are_partial(toy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a smoke run that passes for a result; the corpus stays whole."""
    original, sizes = mteb_run.E2RankMTEB.index, []
    counting = lambda self, corpus, **how: sizes.append(len(corpus)) or original(self, corpus, **how)  # noqa: E731
    monkeypatch.setattr(mteb_run.E2RankMTEB, "index", counting)
    (outcome,) = run(Options(output_dir=tmp_path, limit=2, **toy, **NFCORPUS, **PLAIN))
    assert outcome.state == "done, local, partial"
    (result,) = results(tmp_path).values()
    assert (result.partial, result.settings["limit"], result.queries) == (True, 2, 2)
    assert sizes[0] > 20


def test_tasks_without_search_run_once(toy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a second, equal result under the name of a mode that does not concern the task.

    And against a full run of a task that cannot be cut short, though a smoke run was asked for.
    """
    monkeypatch.setattr(mteb_run, "find_tasks", lambda names, benchmarks: [MockSTSTask()])
    monkeypatch.setattr(mteb_run, "use_folder", lambda task, folder: None)  # it makes its own data
    options = Options(output_dir=tmp_path, tasks=["sts"], **toy)
    (refused,) = run(replace(options, limit=2))
    assert "has no queries to limit" in refused.error and not results(tmp_path)
    (outcome,) = run(options)
    assert (outcome.mode, outcome.metric) == ("embedding", "cosine_spearman")
    ((place, result),) = results(tmp_path).items()
    assert place == ("MockSTSTask", "embedding")
    system = result.systems["embedding"]
    assert (system.per_query, result.queries) == ({}, 0)
    assert 100 * system.scores["cosine_spearman"] == outcome.score
    with pytest.raises(ValueError, match="None of the tasks searches; run them with the mode embedding"):
        replace(options, modes=["two-stage"])
