"""The command e2rank tune: every form of a first stage, from files to a verdict, a model folder and a figure."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from e2rank_st import E2Rank, SearchIndex
from e2rank_st.cli.app import app
from e2rank_st.data.trec import write_run
from e2rank_st.evaluation import tuning as tuning_module
from tests.benchmarks.data import hits
from tests.toy import toy_rows, train_a_step

NUMBER = 30
RUN = ("--run", "run.trec", "--corpus", "corpus.jsonl", "--queries", "queries.jsonl")


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_module, "SAMPLES", 400)
    monkeypatch.setattr(tuning_module, "REPEATS", 3)


@pytest.fixture(scope="module")
def model(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "model"
    tiny.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def index(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the documents; their ids are those of the judgements."""
    folder = tmp_path_factory.mktemp("tune") / "index"
    lists = [hits(row, number) for number, row in enumerate(toy_rows(NUMBER, seed=3))]
    documents = {hit["docid"]: {"id": hit["docid"], "text": hit["content"]} for part in lists for hit in part}
    SearchIndex.create(folder, tiny, documents.values())
    return folder


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same first stage as a run with texts and as results, and its judgements."""
    monkeypatch.chdir(tmp_path)
    rows = toy_rows(NUMBER, seed=3)
    lists = [hits(row, number) for number, row in enumerate(rows)]
    write_lines("hits.jsonl", [{"query": row["query"], "hits": part} for row, part in zip(rows, lists, strict=True)])
    documents = {hit["docid"]: hit["content"] for part in lists for hit in part}
    write_lines("corpus.jsonl", [{"_id": id_, "text": text} for id_, text in documents.items()])
    write_lines("queries.jsonl", [{"_id": f"q{number}", "text": row["query"]} for number, row in enumerate(rows)])
    write_run("run.trec", {part[0]["qid"]: {hit["docid"]: hit["score"] for hit in part} for part in lists}, "toy")
    judged = [f"q{number} 0 d{number}-0 2\n" for number in range(NUMBER)]
    Path("qrels.txt").write_text("".join(judged), encoding="utf-8")


def write_lines(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["tune", "--device", "cpu", *map(str, arguments)])


def test_a_run_and_results_give_the_same(model: Path):
    """Guards against candidates that lose their texts, their scores or their judgements in one of both forms."""
    options = ("--qrels", "qrels.txt", "--model", model)
    done = run(*RUN, *options, "--output", "run.json")
    assert done.exit_code == 0, done.stderr
    title, *rows = done.stdout.splitlines()
    assert title.startswith(f"# {NUMBER} queries, ")
    names = [row.split("\t")[0] for row in rows]
    assert names[:4] == [
        "first stage", "plain embedding", "as the model is configured", "chosen on other queries (held out)"
    ]  # fmt: skip
    again = run("--results", "hits.jsonl", *options, "--output", "results.json")
    assert again.stdout == done.stdout
    assert Path("run.json").read_text() == Path("results.json").read_text()
    found = json.loads(Path("run.json").read_text())
    assert rows[-2:] == [f"# {sentence}" for sentence in found["sentences"]]
    assert rows[0].split("\t")[1] == f"{100 * found['first_stage']:.2f}"
    assert {setting["first_stage_weight"] for setting in found["trials"]} == {0.0, 0.3, 0.5, 0.7, 1.0}


def test_index_is_its_own_first_stage(tiny: E2Rank, model: Path, index: Path):
    """Guards against documents that are not those of the judgements, and against an index that is not searched."""
    options = ("--queries", "queries.jsonl", "--qrels", "qrels.txt", "--model", model)
    done = run("--index", index, *options, "--top-n", 8, "--output", "index.json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(Path("index.json").read_text())
    assert found["first_stage"] == found["embedding"] > 0
    assert {setting["first_stage_weight"] for setting in found["trials"]} == {0.0, 1.0}
    queries = [json.loads(line) for line in Path("queries.jsonl").read_text().splitlines()]
    ranked = SearchIndex.open(index, tiny).search([query["text"] for query in queries], top_k=8, rerank=False)
    rows = zip(queries, ranked, strict=True)
    write_run("own.trec", {query["_id"]: {hit["id"]: hit["score"] for hit in part} for query, part in rows}, "own")
    done = run("--run", "own.trec", "--corpus", "corpus.jsonl", *options, "--output", "run.json")
    assert done.exit_code == 0, done.stderr
    by_hand = json.loads(Path("run.json").read_text())
    for name in ("first_stage", "configured"):
        assert found[name] == pytest.approx(by_hand[name], abs=1e-9), name


def test_writes_settings_and_a_figure(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against settings that are written although they do not help, and against a verdict that writes nothing."""
    pytest.importorskip("matplotlib")
    E2Rank(str(model), device="cpu").save("mine")
    config = next(tmp_path.glob("mine/*_ListwiseRerank/config.json"))
    before = config.read_text()
    options = (*RUN, "--qrels", "qrels.txt", "--model", "mine", "--write")
    monkeypatch.setattr(tuning_module, "_verdict", lambda *_: ("cannot be told", 99))
    done = run(*options, "--figure", "figure.png")
    assert done.exit_code == 0, done.stderr
    assert "mine stays as it is" in done.stderr and config.read_text() == before
    assert Path("figure.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(tuning_module, "_verdict", lambda *_: ("rerank", None))
    monkeypatch.setattr(tuning_module, "_best", lambda means: 8)
    done = run(*options)
    assert done.exit_code == 0, done.stderr
    after = json.loads(config.read_text())
    assert done.stderr.splitlines()[-1].startswith("wrote candidate_order=")
    assert after != json.loads(before) and after.keys() == json.loads(before).keys()
    E2Rank("mine", device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*RUN, "--qrels", "other.txt"), "None of 30 queries is judged"),
        ((*RUN[:3], "few.jsonl", *RUN[4:], "--qrels", "qrels.txt"), "have no text in queries.jsonl or few.jsonl"),
        ((*RUN, "--qrels", "elsewhere.txt"), "No candidate of any query is judged"),
        (("--results", "nothing.jsonl", "--qrels", "qrels.txt"), "nothing.jsonl: No such file"),
        (("--index", "index", "--queries", "few.jsonl", "--qrels", "qrels.txt"), "judged queries have no text"),
        (("--index", "index", *RUN[4:], "--qrels", "elsewhere.txt"), "No candidate of any query is judged"),
        (("--index", "nothing", *RUN[4:], "--qrels", "qrels.txt"), "There is no index in nothing"),
        (("--index", "passages", *RUN[4:], "--qrels", "qrels.txt"), "An index of passages cannot be tuned on"),
        (("--index", "empty", *RUN[4:], "--qrels", "qrels.txt"), "The index is empty"),
        (("--index", "others", *RUN[4:], "--qrels", "qrels.txt"), "does not give the vectors of this index"),
    ],
)
def test_errors_are_one_line(model: Path, index: Path, tiny: E2Rank, arguments: tuple[str, ...], message: str):
    """Guards against zeros where files do not belong together, and against a traceback."""
    shutil.copytree(index, "index")
    if "passages" in arguments:
        SearchIndex.create("passages", tiny, ["a"], long_documents="passages")
    if "empty" in arguments:
        SearchIndex.create("empty", tiny)
    if "others" in arguments:
        other = copy.deepcopy(tiny)
        train_a_step(other, rate=1e-2)
        SearchIndex.create("others", other, ["a"])
    Path("other.txt").write_text("x 0 d0-0 1\n")
    Path("elsewhere.txt").write_text("q0 0 x 1\nq1 0 y 1\n")
    write_lines("few.jsonl", [{"_id": "d0-0", "text": "about flea"}])
    done = run(*arguments, "--model", model)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("left out")]
    assert (done.exit_code, done.stdout, len(lines)) == (1, "", 1)
    assert message in lines[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--qrels", "qrels.txt"],
        ["--qrels", "qrels.txt", "--run", "run.trec"],
        ["--qrels", "qrels.txt", "--results", "hits.jsonl", "--index", "index"],
        ["--qrels", "qrels.txt", "--results", "hits.jsonl", "--write"],
        ["--qrels", "qrels.txt", "--index", "index", "--queries", "queries.jsonl", "--corpus", "corpus.jsonl"],
        ["--results", "hits.jsonl"],
    ],
)
def test_usage_errors(arguments: list[str]):
    """Guards against a first stage that is ignored beside a second one, and settings written nowhere."""
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
