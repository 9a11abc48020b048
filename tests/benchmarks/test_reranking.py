"""Reranking on toy sets: every source, every system, what is written, and every way to go wrong."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from e2rank_st import E2Rank
from e2rank_st.benchmarks import first_stages
from e2rank_st.benchmarks.instructions import instructed
from e2rank_st.benchmarks.reranking import Options, run
from e2rank_st.benchmarks.results import Result
from e2rank_st.benchmarks.tasks import HUB_REPOSITORY, TASKS
from e2rank_st.data.trec import read_qrels, read_run, write_run
from e2rank_st.evaluation.metrics import evaluate, mean
from tests.benchmarks.data import write_beir, write_task
from tests.labelling.test_teachers import tiny_cross_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a toy dl21."""
    return write_task(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def options(folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Options of a run with all systems."""
    output = tmp_path_factory.mktemp("output")
    tiny_cross_encoder(output / "my-cross-encoder")
    return Options(
        tasks=["dl21"],
        data_dir=folder,
        model=str(checkpoint),
        baseline=str(checkpoint),
        cross_encoder=str(output / "my-cross-encoder"),
        num_prompt_documents=[2, 4],
        embedding_queries=2,
        device="cpu",
        output_dir=output,
        runs_dir=output / "runs",
    )


@pytest.fixture(scope="module")
def result(options: Options) -> Result:
    """The result of that run; many tests look at it."""
    return one(options)


def one(options: Options) -> Result:
    """The result of a single task, as its file has it."""
    (outcome,) = run(options)
    assert isinstance(outcome, Result), outcome
    found = Result.read(options.output_dir / f"{outcome.task}-{outcome.first_stage}.json")
    assert found.systems == outcome.systems
    return found


def small(checkpoint: Path, output: Path, **changes: Any) -> Options:
    """Options of a run with few systems."""
    return Options(
        **{"model": str(checkpoint), "output_dir": output, "device": "cpu", "embedding_queries": 0, **changes}
    )


def test_a_result_says_what_it_is(result: Result, options: Options, checkpoint: Path):
    """Guards against a result that does not say what was measured on what, and against paths of a machine in it."""
    text = (options.output_dir / "dl21-bm25.json").read_text(encoding="utf-8")
    for path in (checkpoint.parent, options.output_dir, options.data_dir):
        assert str(path) not in text
    assert (result.task, result.column, result.queries) == ("dl21", "DL21 bm25", 6)
    assert (result.local, result.partial) == (True, False)
    names = ["embedding", "rocchio", "listwise_k2", "listwise_k4"]
    assert list(result.systems) == ["first_stage", *(f"baseline_{name}" for name in names), *names, "cross_encoder"]
    roles = [system.model for system in result.systems.values()]
    assert roles == ["", *["baseline"] * 4, *["model"] * 4, "cross_encoder"]
    assert result.models["model"]["name"] == "local/tiny-qwen3"
    assert result.models["cross_encoder"]["name"] == "local/my-cross-encoder"
    assert result.models["model"]["revision"] == result.models["baseline"]["revision"]
    assert (result.settings["compare_with"], result.settings["relevant_from"]) == ("baseline_embedding", 2)
    assert {"torch", "sentence-transformers", "pytrec-eval-terrier"} <= result.environment["versions"].keys()
    assert result.environment["hardware"]["cpus"]


def test_scores_are_those_of_the_runs(result: Result, options: Options, folder: Path):
    """Guards against numbers that the run files do not have, and against ranks for scores."""
    qrels = {
        query: {document: int(grade) for document, grade in grades.items()}
        for query, grades in read_qrels(folder / "rerank" / "dl21_qrels.txt").items()
    }
    for name, system in result.systems.items():
        found = read_run(options.runs_dir / f"dl21-bm25.{name}.trec")
        assert list(found) == list(qrels)
        expected = evaluate(found, qrels, relevant_from=2)
        for metric, scores in expected.items():
            assert system.scores[metric] == pytest.approx(mean(scores), abs=1e-6), (name, metric)
        assert system.per_query == pytest.approx(expected["ndcg@10"], abs=1e-6)
        low, high = system.interval
        assert low <= system.scores["ndcg@10"] <= high
    listwise = read_run(options.runs_dir / "dl21-bm25.listwise_k4.trec")
    cosines = [score for scores in listwise.values() for score in scores.values()]
    assert all(-1 <= score <= 1 and score != round(score) for score in cosines)


def test_same_model_as_baseline_ties(result: Result):
    """Guards against systems that are given each other's scores or vectors."""
    for name in ("embedding", "rocchio", "listwise_k2"):
        assert result.systems[name].per_query == result.systems[f"baseline_{name}"].per_query
    found = result.systems["embedding"].comparison
    assert (found["against"], found["difference"], found["p"]) == ("baseline_embedding", 0.0, 1.0)
    assert (found["wins"], found["ties"], found["losses"]) == (0, 6, 0)
    assert result.systems["baseline_embedding"].comparison is None


def test_latency_and_tokens(result: Result):
    """Guards against times that leave out what a system costs, or count what it does not."""
    first, pairs = result.systems["first_stage"], result.systems["cross_encoder"]
    assert (first.latency, first.tokens) == ({"stored": None, "fresh": None}, None)
    assert pairs.latency["stored"] is None
    assert pairs.latency["fresh"]["queries"] == 6
    systems = [result.systems[name] for name in ("embedding", "listwise_k2", "listwise_k4")]
    for system in systems:
        latency = system.latency
        assert (latency["stored"]["queries"], latency["fresh"]["queries"]) == (6, 2)
        assert 0 < latency["stored"]["median"] <= latency["stored"]["p95"]
    tokens = [system.tokens["median"] for system in systems]
    assert tokens == sorted(tokens) and len(set(tokens)) == 3


def test_instructions_of_the_task(result: Result, folder: Path, checkpoint: Path, tmp_path: Path, tiny: E2Rank):
    """Guards against a task's instructions that never reach the model, and against ones that stay behind."""
    assert TASKS["dl21"].retrieval_instruction in result.models["model"]["prompts"]["query"]
    assert result.systems["listwise_k2"].parameters["instruction"] == TASKS["dl21"].listwise_instruction
    before = tiny.prompts["query"]
    with instructed(tiny, "Find it"):
        assert tiny.prompts["query"] == "Instruct: Find it\nQuery:"
    assert tiny.prompts["query"] == before
    own = {"tasks": ["dl21"], "data_dir": folder, "instructions": "model", "systems": ["listwise"]}
    found = one(small(checkpoint, tmp_path, **own))
    assert found.systems["listwise"].parameters["instruction"] is None
    assert found.models["model"]["prompts"]["query"] == before


def test_limit_is_partial_and_a_run_is_repeatable(folder: Path, checkpoint: Path, tmp_path: Path):
    """Guards against a smoke run that passes for a result, and against intervals that change from run to run."""
    same = {"tasks": ["dl21"], "data_dir": folder, "limit": 4}
    first, second = (
        one(small(checkpoint, tmp_path / name, runs_dir=tmp_path / name / "runs", **same)) for name in ("one", "two")
    )
    assert (first.partial, first.queries, first.settings["compare_with"]) == (True, 4, "embedding")
    for name, system in first.systems.items():
        unlike = {"latency": {}, "tokens": None}
        assert replace(system, **unlike) == replace(second.systems[name], **unlike)
    runs = [[path.read_bytes() for path in sorted((tmp_path / name / "runs").iterdir())] for name in ("one", "two")]
    assert runs[0] == runs[1]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")], "scratch files are left"


def test_fused_stands_between_both_scores(folder: Path, checkpoint: Path, tmp_path: Path):
    """Guards against a mix with the wrong list: with all weight it is the first stage, with none listwise."""
    same = {"tasks": ["dl21"], "data_dir": folder, "systems": ["listwise", "fused"]}
    whole = one(small(checkpoint, tmp_path / "one", first_stage_weight=1.0, **same))
    assert list(whole.systems) == ["first_stage", "listwise", "fused"]
    assert whole.systems["fused"].kind == "fused"
    assert whole.systems["fused"].per_query == whole.systems["first_stage"].per_query
    little = one(small(checkpoint, tmp_path / "two", first_stage_weight=1e-9, num_prompt_documents=[2, 4], **same))
    assert list(little.systems) == ["first_stage", "listwise_k2", "fused_k2", "listwise_k4", "fused_k4"]
    assert little.systems["fused_k4"].per_query == little.systems["listwise_k4"].per_query
    assert little.systems["fused_k4"].per_query != whole.systems["fused"].per_query, "the premise: they differ"
    (failure,) = run(small(checkpoint, tmp_path / "three", **same))
    assert "weight of the system fused is 0" in failure.error


def test_own_files(tmp_path: Path, folder: Path, checkpoint: Path):
    """Guards against sources that the table does not know, and against runs that nobody asked for."""
    rerank = folder / "rerank"
    files = {"results": rerank / "dl21_bm25_top100.jsonl", "qrels": rerank / "dl21_qrels.txt"}
    assert one(small(checkpoint, tmp_path, **files)).settings["qrels"] == "dl21_qrels.txt"
    beir, mine = write_beir(tmp_path / "toys"), tmp_path / "mine.trec"
    write_run(mine, {f"q{query}": {f"d{query}-1": 2.0, f"d{query}-0": 1.0} for query in range(5)}, "s")
    given = one(small(checkpoint, tmp_path, beir=beir, run=mine))
    assert (given.task, given.first_stage) == ("toys", "mine")
    assert given.systems["first_stage"].scores["mrr@10"] == 0.5
    own = one(small(checkpoint, tmp_path, beir=beir, own_first_stage=True, top_n=7))
    assert own.candidates == 7
    assert own.first_stage == "own" and "first_stage" not in own.settings
    assert own.systems["first_stage"].per_query == own.systems["embedding"].per_query
    assert own.sources["toys"].startswith("sha256-"), "the texts are part of what was measured"
    assert list(tmp_path.rglob("*.trec")) == [mine]


def test_each_model_reranks_what_it_retrieved(tmp_path: Path, checkpoint: Path, tiny: E2Rank):
    """Guards against a baseline that is judged on the candidates of the model that is to beat it."""
    other = copy.deepcopy(tiny)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    other.save(str(tmp_path / "other"))
    same = {"beir": write_beir(tmp_path / "toys"), "own_first_stage": True, "top_n": 9}
    same |= {"systems": ["embedding", "listwise"]}
    both, alone = tmp_path / "both", tmp_path / "alone"
    one(small(checkpoint, both, baseline=str(tmp_path / "other"), runs_dir=both, **same))
    one(small(tmp_path / "other", alone, runs_dir=alone, **same))
    listwise, baseline = (read_run(both / f"toys-own.{name}.trec") for name in ("listwise", "baseline_listwise"))
    expected = read_run(alone / "toys-own.listwise.trec")
    assert baseline == expected
    assert any(listwise[query].keys() != expected[query].keys() for query in expected), "the models have to differ"


def test_another_split_is_another_task(tmp_path: Path, checkpoint: Path):
    """Guards against scores of dev queries under the name of the test set."""
    beir = write_beir(tmp_path / "nfcorpus")
    (beir / "qrels" / "test.tsv").rename(beir / "qrels" / "dev.tsv")
    same = {"own_first_stage": True, "systems": ["embedding"], "data_dir": tmp_path}
    given = one(small(checkpoint, tmp_path / "out", tasks=["nfc"], split="dev", **same))
    own = one(small(checkpoint, tmp_path / "out", tasks=["nfcorpus-dev"], **same))
    assert (own.task, given.task) == ("nfcorpus-dev", "nfc-dev")
    assert (own.title, given.title) == ("NFCorpus dev", "NFCorpus dev")
    assert own.systems["embedding"].scores == given.systems["embedding"].scores


def test_mismatch_is_an_error_and_nothing_is_written(tmp_path: Path, checkpoint: Path):
    """Guards against a silent zero."""
    data = write_task(tmp_path / "data")
    (data / "rerank" / "dl21_qrels.txt").write_text("1 0 a 1\n", encoding="utf-8")
    (failure,) = run(small(checkpoint, tmp_path / "out", tasks=["dl21"], data_dir=data))
    assert "None of 6 queries is judged" in failure.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"results": Path("a.jsonl")}, "Results and qrels belong together"),
        ({"results": Path("a"), "qrels": Path("b"), "beir": Path("c")}, "one source of candidates"),
        ({"run": Path("a")}, "A run needs texts"),
        ({"beir": Path("a")}, "give a run, or ask for an own first stage"),
        ({"tasks": ["dl19"], "own_first_stage": True}, "needs a corpus"),
        ({"tasks": ["dl"], "beir": Path("a"), "run": Path("b")}, "files of one test set for 5 tasks"),
        ({"tasks": ["dl19"], "first_stage_weight": 0.5}, "is for the system fused, which is not among the systems"),
        ({"tasks": ["dl19"], "baseline": "./nowhere"}, "neither a folder here nor a Hub id"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str):
    """Guards against a run that starts without knowing on what."""
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_files_from_the_hub(folder: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against names that the public data set does not have, and against its data marked as local."""
    files = {
        "bm25/dl19_top100.jsonl": "dl21_bm25_top100.jsonl",
        "topics_and_qrels/qrels.dl19-passage.txt": "dl21_qrels.txt",
    }

    def download(repository: str, name: str, repo_type: str) -> str:
        assert (repository, repo_type) == (HUB_REPOSITORY, "dataset")
        return str(folder / "rerank" / files[name])

    monkeypatch.setattr(first_stages, "hf_hub_download", download)
    result = one(small(checkpoint, tmp_path, tasks=["dl19"], systems=["embedding"]))
    assert (result.local, result.partial, result.queries) == (False, False, 6)
