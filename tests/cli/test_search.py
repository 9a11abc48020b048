"""The commands e2rank index and e2rank search: sources, output, runs and errors."""

import datetime
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from e2rank_st import E2Rank, SearchIndex
from e2rank_st.cli.app import app
from e2rank_st.data.trec import read_run
from e2rank_st.loading import load_model
from e2rank_st.search.maker import PROBES

QUERY, FLEAS = "how long do fleas live", "Fleas live 100 days."
QUERIES = {"q1": QUERY, "7": "melting metal", "q3": "rivers of Europe"}
HEAVY = ("torch", "transformers", "numpy", "lancedb", "pyarrow")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    package = logging.getLogger("e2rank_st")
    level, handlers = package.level, list(package.handlers)
    yield lambda *arguments, stdin=None: CliRunner().invoke(app, arguments, input=stdin)
    package.setLevel(level)
    package.handlers[:] = handlers


@pytest.fixture(scope="module")
def model(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model in a folder."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def documents(facts: list[str]) -> list[dict[str, Any]]:
    day = datetime.date(2020, 1, 31)
    rows = [
        {"id": f"f{row}", "text": text, "year": 2000 + row, "day": day + datetime.timedelta(row)}
        for row, text in enumerate(facts)
    ]
    rows[3] |= {"title": "Bread,\tbaked", "text": f"{facts[3]}\n\nIt is\x1b[2J old.", "tags": ["food", "größe"]}
    return rows


@pytest.fixture(scope="module")
def searched(documents: list[dict[str, Any]], model: str, tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    """An index that tests only read."""
    place = tmp_path_factory.mktemp("index") / "facts.lance"
    return SearchIndex.create(place, load_model(model, device="cpu"), documents)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that any model embeds as documents; those of the fingerprint do not count."""
    texts: list[str] = []
    encode = E2Rank.encode_document

    def spy(self, part, **options):
        texts.extend(text for text in part if text not in PROBES)
        return encode(self, part, **options)

    monkeypatch.setattr(E2Rank, "encode_document", spy)
    return texts


def place(index: SearchIndex) -> str:
    return str(index.store.place)


def rows(result: Result) -> list[list[str]]:
    assert result.exit_code == 0, result.stderr or result.exception
    return [line.split("\t") for line in result.stdout.splitlines()]


def records(result: Result) -> list[dict]:
    def refuse(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    assert result.exit_code == 0, result.stderr or result.exception
    return [json.loads(line, parse_constant=refuse) for line in result.stdout.splitlines()]


def error_of(result: Result) -> str:
    """The one line of a mistake."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert not result.exception or isinstance(result.exception, SystemExit), repr(result.exception)
    assert (result.exit_code, result.stdout, len(lines)) == (1, "", 1), result.stderr
    assert lines[0].startswith("e2rank: error: ")
    return lines[0]


def write(files: dict[str, str]) -> None:
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


def test_a_folder_of_notes(run, shipped: E2Rank):
    """Guards against a first example that does not work: the bundled model, a folder of files, and a question."""
    write({"notes/fleas.txt": FLEAS, "notes/deep/iron.md": "# Iron\n\nIt melts.\n", "notes/x.pdf": "%PDF"})
    made = run("index", "notes/", "--to", "notes.lance")
    assert (made.exit_code, made.stdout) == (0, "")
    assert "notes.lance holds 2 documents: 2 embedded, 0 rewritten, 0 unchanged" in made.stderr
    assert "warning: notes: left out 1 files" in made.stderr
    found = rows(run("search", "notes.lance", QUERY))
    expected = SearchIndex.open("notes.lance", shipped).search(QUERY)
    assert [row[3] for row in found] == [hit["id"] for hit in expected] == ["fleas.txt", "deep/iron.md"]
    assert [float(row[1]) for row in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-4)
    assert found[1][4] == "# Iron It melts."
    assert ["model", "bundled"] in rows(run("index", "notes.lance", "--info"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.txt"])
def test_forms_of_a_source(run, model: str, name: str):
    """Guards against a form of file that is read without its ids or fields, or as lines of text."""
    table = pd.DataFrame({"id": ["x", "y"], "text": [FLEAS, "Iron melts."], "year": [2001, 2002]})
    lines = {
        ".jsonl": lambda: table.to_json(name, orient="records", lines=True),
        ".csv": lambda: table.to_csv(name, index=False),
        ".tsv": lambda: table.to_csv(name, index=False, sep="\t"),
        ".parquet": lambda: table.to_parquet(name),
        ".txt": lambda: write({name: f"{FLEAS}\n\nIron melts.\n"}),
    }
    lines[Path(name).suffix]()
    made = run("index", name, "--to", "made.lance", "--model", model)
    assert (made.exit_code, made.stdout) == (0, ""), made.stderr
    index = SearchIndex.open("made.lance")
    assert len(index) == 2
    if name != "a.txt":
        known = index.get(["x", "y"])
        assert [record.text for record in known.values()] == [FLEAS, "Iron melts."]
        assert [str(record.fields["year"]) for record in known.values()] == ["2001", "2002"]


def test_standard_input_and_nothing(run, model: str):
    """Guards against a command that cannot stand in a pipe, and success without a document."""
    made = run("index", "-", "--to", "x.lance", "--model", model, stdin="a\nb\n")
    assert (made.exit_code, len(SearchIndex.open("x.lance"))) == (0, 2), made.stderr
    write({"empty/a.pdf": "x"})
    made = run("index", "empty", "--to", "y.lance", "--model", model)
    assert made.exit_code == 1
    assert "empty holds no documents" in made.stderr


def test_again_and_after_a_change(run, model: str, embedded: list[str]):
    """Guards against work that is done twice, a change that is not seen, and a model that is needed again."""
    write({"notes/a.txt": FLEAS, "notes/b.txt": "Iron melts.", "notes/c.txt": "Bread rises."})
    assert run("index", "notes", "--to", "notes.lance", "--model", model).exit_code == 0
    assert len(embedded) == 3
    embedded.clear()
    again = run("index", "notes", "--to", "notes.lance")
    assert "holds 3 documents: 0 embedded, 0 rewritten, 3 unchanged" in again.stderr
    assert embedded == []
    write({"notes/b.txt": "Iron melts at 1538 degrees.", "notes/d.txt": "Cats sleep."})
    changed = run("index", "notes", "--to", "notes.lance")
    assert "holds 4 documents: 2 embedded, 0 rewritten, 2 unchanged" in changed.stderr
    assert embedded == ["Iron melts at 1538 degrees.", "Cats sleep."]
    (hit, *_) = records(run("search", "notes.lance", "iron", "--where", "id = 'b.txt'", "--json"))
    assert hit["text"] == "Iron melts at 1538 degrees."


def test_a_changed_field_needs_no_embedding(run, model: str, embedded: list[str]):
    """Guards against vectors that are made again for a new field, and an old field that stays."""
    for year, told in ((2001, "1 embedded, 0 rewritten"), (2002, "0 embedded, 1 rewritten")):
        write({"a.jsonl": json.dumps({"id": "a", "text": FLEAS, "year": year})})
        result = run("index", "a.jsonl", "--to", "a.lance", "--model", model)
        assert f"holds 1 documents: {told}, 0 unchanged" in result.stderr
    assert embedded == [FLEAS]
    assert SearchIndex.open("a.lance").get(["a"])["a"].fields == {"year": 2002}


def test_info_can_be_read_by_programs(run, searched: SearchIndex, model: str):
    """Guards against a value that breaks the form of a line each, and against a model that is loaded to look."""
    found = dict(rows(run("index", place(searched), "--info")))
    expected = searched.info()
    assert found.keys() == expected.keys()
    assert (found["model"], found["documents"], expected["fields"]["year"]) == (model, "10", "int64")
    for name, value in found.items():  # a printable text stands as it is, all else is JSON
        assert value == expected[name] or json.loads(value) == expected[name]


@pytest.mark.parametrize(
    "arguments",
    [
        ["index"],
        ["index", "a.txt"],
        ["index", "a.txt", "--to", "x.lance", "--info"],
        ["index", "a.txt", "--to", "x.lance", "--long-documents", "whole"],
        ["index", "a.txt", "--to", "x.lance", "--batch-size", "0"],
        ["search"],
        ["search", "x.lance"],
        ["search", "x.lance", QUERY, "--queries", "a.txt"],
        ["search", "x.lance", QUERY, "--run", "out.trec"],
        ["search", "x.lance", "--queries", "q.txt", "--run", "out.trec", "--json"],
        ["search", "x.lance", "--run", "out.trec"],
        ["search", "x.lance", QUERY, "--first-stage", "words"],
        ["search", "x.lance", QUERY, "--top-k", "0"],
        ["search", "x.lance", QUERY, "--num-candidates", "0"],
        ["search", "x.lance", QUERY, "--min-similarity", "2"],
        ["search", "x.lance", QUERY, "--first-stage-weight", "-1"],
        ["search", "x.lance", QUERY, "--no-rerank", "--first-stage-weight", "0.5"],
    ],
)
def test_usage_errors(run, searched: SearchIndex, arguments: list[str]):
    """Guards against an option that is ignored, and against files that a mistyped command leaves."""
    write({"a.txt": FLEAS})
    result = run(*(place(searched) if part == "x.lance" and arguments[0] == "search" else part for part in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr
    assert os.listdir() == ["a.txt"]  # noqa: PTH208


def test_a_table_in_a_pipe(run, searched: SearchIndex, documents: list[dict[str, Any]]):
    """Guards against a command that ranks otherwise than the library, and a tab or line end that breaks a row."""
    found = rows(run("search", place(searched), QUERY, "--top-k", "8", "--num-candidates", "9"))
    hits = searched.search(QUERY, 8, 9)
    assert all(len(row) == 5 for row in found)
    assert [(int(row[0]), int(row[2]), row[3]) for row in found] == [
        (rank, hit["retrieval_rank"], hit["id"]) for rank, hit in enumerate(hits, 1)
    ]
    assert [float(row[1]) for row in found] == pytest.approx([hit["score"] for hit in hits], abs=1e-4)
    texts = {row["id"]: row["text"] for row in documents}
    (bread,) = rows(run("search", place(searched), QUERY, "--where", "id = 'f3'"))
    assert bread[4] == "Bread, baked Bread rises because yeast makes gas. It is [2J old."
    assert all(row[4] == texts[row[3]] for row in found if row[3] != "f3")


def test_json_lines_hold_all_fields(run, searched: SearchIndex):
    """Guards against fields that are lost, and dates that no program can read."""
    found = records(run("search", place(searched), QUERY, "--json", "--top-k", "10"))
    hits = searched.search(QUERY, 10)
    for rank, (hit, expected) in enumerate(zip(found, hits, strict=True), 1):
        assert hit.keys() == {"rank", *expected}
        assert hit["rank"] == rank
        assert (hit["id"], hit["text"], hit["title"]) == (expected["id"], expected["text"], expected["title"])
        for name in ("score", "similarity", "retrieval_score", "retrieval_rank"):
            assert hit[name] == pytest.approx(expected[name], abs=1e-5)
        day = expected["fields"].pop("day")
        assert datetime.date.fromisoformat(hit["fields"].pop("day")) == day
        assert hit["fields"] == expected["fields"]
    assert {"year": 2003, "tags": ["food", "größe"]} in [hit["fields"] for hit in found]


def test_json_lines_are_json(run, model: str):
    """Guards against an infinite number, or a time, that leads to a line that no program reads, or to a traceback."""
    noon = datetime.datetime(2020, 2, 29, 12, tzinfo=datetime.timezone.utc)
    pd.DataFrame({"text": [FLEAS], "x": [float("inf")], "noon": [noon]}).to_parquet("a.parquet")
    made = run("index", "a.parquet", "--to", "a.lance", "--model", model)
    assert "a.parquet: document 1: x: not a number; got inf" in error_of(made)
    pd.DataFrame({"text": [FLEAS], "noon": [noon]}).to_parquet("a.parquet")
    run("index", "a.parquet", "--to", "a.lance", "--model", model)
    (hit,) = records(run("search", "a.lance", QUERY, "--json"))
    assert datetime.datetime.fromisoformat(hit["fields"]["noon"]) == noon


def test_rerank_takes_the_dates_of_a_table(run, model: str):
    """Guards against a traceback of rerank and embed, which read the same parquet files."""
    pd.DataFrame({"text": [FLEAS], "day": [datetime.date(2020, 2, 29)]}).to_parquet("a.parquet")
    for command in (["rerank", QUERY], ["embed"]):
        more = ["--json"] if command[0] == "rerank" else []
        (found,) = records(run(*command, "a.parquet", "--model", model, *more))
        assert (found["text"], found["day"]) == (FLEAS, "2020-02-29")


def test_conditions(run, searched: SearchIndex):
    """Guards against a condition that comes after the best are taken, and against one on dates that fails."""
    for where, expected in (
        ("year >= 2008", {"f8", "f9"}),
        ("id IN ('f1', 'f2') AND year = 2001", {"f1"}),
        ("day > date '2020-02-08'", {"f9"}),
        ("title LIKE 'Bread%'", {"f3"}),
        ("year > 3000", set()),
    ):
        options = ["--json", "--top-k", "2", "--num-candidates", "2"]
        found = records(run("search", place(searched), QUERY, "--where", where, *options))
        assert {hit["id"] for hit in found} == expected


@pytest.mark.parametrize("where", ["year >", "", "colour = 'red'", "year = 'x' y", "DROP TABLE documents"])
def test_bad_conditions_are_one_line(run, searched: SearchIndex, where: str):
    """Guards against a traceback, and against a condition that is not heeded."""
    message = error_of(run("search", place(searched), QUERY, "--where", where))
    assert f"where={where!r} is not a condition on this index" in message
    if where.startswith("colour"):
        assert "year" in message, "it names the fields that there are"


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--first-stage", "text"], {"first_stage": "text"}),
        (["--first-stage", "hybrid"], {"first_stage": "hybrid"}),
        (["--no-rerank"], {"rerank": False}),
        (["--no-rerank", "--first-stage", "text"], {"rerank": False, "first_stage": "text"}),
        (["--first-stage-weight", "1"], {"first_stage_weight": 1.0}),
        (["--first-stage", "text", "--first-stage-weight", "0.4"], {"first_stage": "text", "first_stage_weight": 0.4}),
        (["--where", "year < 2004", "--no-rerank"], {"where": "year < 2004", "rerank": False}),
        (["--num-candidates", "4", "--top-k", "3"], {"num_candidates": 4, "top_k": 3}),
    ],
)  # fmt: skip
def test_options_reach_the_search(run, searched: SearchIndex, arguments: list[str], options: dict[str, Any]):
    """Guards against an option that is read and forgotten."""
    found = records(run("search", place(searched), "fleas and iron", "--json", *arguments))
    hits = searched.search("fleas and iron", **options)
    assert hits and [hit["id"] for hit in found] == [hit["id"] for hit in hits]
    assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in hits], abs=1e-5)


def test_least_similarity(run, searched: SearchIndex):
    """Guards against a threshold on another number than the similarity that is shown."""
    similar = sorted(hit["similarity"] for hit in records(run("search", place(searched), QUERY, "--json")))
    least = (similar[5] + similar[6]) / 2
    for more in ([], ["--no-rerank"]):
        found = records(run("search", place(searched), QUERY, "--json", "--min-similarity", str(least), *more))
        assert sorted(hit["similarity"] for hit in found) == pytest.approx(similar[6:], abs=1e-5)
    assert rows(run("search", place(searched), QUERY, "--min-similarity", "1")) == []


def test_many_queries_of_json_lines(run, searched: SearchIndex):
    """Guards against hits of another query, ids that are lost, and a number that is no id."""
    lines = [{"id": "q1", "text": QUERY}, {"_id": 7, "text": QUERIES["7"]}, {"text": QUERIES["q3"], "id": "q3", "x": 1}]
    write({"queries.jsonl": "\n".join(map(json.dumps, lines))})
    found = records(run("search", place(searched), "--queries", "queries.jsonl", "--json", "--top-k", "4"))
    assert [hit["query_id"] for hit in found] == [id_ for id_ in QUERIES for _ in range(4)]
    for start, query in zip((0, 4, 8), QUERIES.values(), strict=True):
        alone = records(run("search", place(searched), query, "--json", "--top-k", "4"))
        assert [hit["id"] for hit in found[start : start + 4]] == [hit["id"] for hit in alone]
        assert [hit["rank"] for hit in found[start : start + 4]] == [1, 2, 3, 4]
        assert "query_id" not in alone[0]


def test_many_queries_of_plain_lines(run, searched: SearchIndex):
    """Guards against blank lines that count as queries, and against hits that no query stands above."""
    lines = f"{QUERY}\n\n  {QUERIES['7']}\n"
    write({"queries.txt": lines})
    found = rows(run("search", place(searched), "--queries", "queries.txt", "--top-k", "2"))
    assert [row[0] for row in found] == [f"# {QUERY}", "1", "2", f"# {QUERIES['7']}", "1", "2"]
    assert rows(run("search", place(searched), "--queries", "-", "--top-k", "2", stdin=lines)) == found
    hits = records(run("search", place(searched), "--queries", "queries.txt", "--top-k", "2", "--json"))
    assert [hit["query_id"] for hit in hits] == ["1", "1", "2", "2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "q.jsonl holds no queries"),
        ('{"id": "a", "text": "one"}\n{"id": "a", "text": "two"}\n', "q.jsonl: query 2: id: appears twice; 'a'"),
        ('{"text": "one"}\n{"text": \n', "q.jsonl:2: line: not JSON"),
        ('{"text": "one"}\n{"question": "two"}\n', "q.jsonl:2: text: missing"),
        ('{"text": "one"}\n{"text": " "}\n', "q.jsonl:2: text: empty"),
        ('{"text": "one"}\n{"text": ""}\n', "q.jsonl: query 2: text: empty"),
        ('{"text": "one"}\n{"id": 1.5, "text": "two"}\n', "q.jsonl: query 2: id: not a string"),
    ],
)
def test_bad_queries_are_named(run, searched: SearchIndex, content: str, message: str):
    """Guards against an error in one of a thousand queries without its place."""
    write({"q.jsonl": content})
    assert message in error_of(run("search", place(searched), "--queries", "q.jsonl"))


@pytest.mark.parametrize("more", [[], ["--no-rerank"], ["--first-stage", "hybrid", "--first-stage-weight", "0.3"]])
def test_a_run_is_read_again_as_the_hits(run, searched: SearchIndex, more: list[str]):
    """Guards against a run in another order than the hits, or of the shown ones only, and output beside it."""
    write({"q.jsonl": "\n".join(json.dumps({"id": id_, "text": text}) for id_, text in QUERIES.items())})
    options = ["--queries", "q.jsonl", *more]
    result = run("search", place(searched), *options, "--top-k", "2", "--num-candidates", "9", "--run", "out/a.trec")
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    hits = records(run("search", place(searched), *options, "--top-k", "9", "--num-candidates", "9", "--json"))
    found = read_run("out/a.trec")
    assert list(found) == list(QUERIES)
    for id_, scores in found.items():
        expected = {hit["id"]: hit["score"] for hit in hits if hit["query_id"] == id_}
        assert list(scores) == list(expected)
        assert len(scores) == 9
        assert list(scores.values()) == pytest.approx(list(expected.values()), abs=1e-6)
    lines = [line.split() for line in Path("out/a.trec").read_text().splitlines()]
    assert [int(line[3]) for line in lines] == [*range(1, 10)] * 3
    assert {line[5] for line in lines} == {"e2rank"}


def test_a_run_of_queries_without_hits(run, searched: SearchIndex):
    """Guards against a query without hits that stops a run."""
    write({"q.txt": "one\ntwo\n"})
    options = ["--queries", "q.txt", "--where", "year > 3000"]
    result = run("search", place(searched), *options, "--run", "out.trec")
    assert result.exit_code == 0, result.stderr or result.exception
    assert read_run("out.trec") == {}
    assert rows(run("search", place(searched), *options)) == [["# one"], ["# two"]]
    assert records(run("search", place(searched), *options, "--json")) == []


def test_an_id_with_a_blank_has_no_place_in_a_run(run, searched: SearchIndex, model: str):
    """Guards against a run whose fields are shifted, and against half a file."""
    write({"notes/my fleas.txt": FLEAS, "q.txt": "fleas\n", "q.jsonl": '{"id": "q 1", "text": "fleas"}\n'})
    assert run("index", "notes", "--to", "notes.lance", "--model", model).exit_code == 0
    for folder, queries, name in (("notes.lance", "q.txt", "my fleas.txt"), (place(searched), "q.jsonl", "q 1")):
        message = error_of(run("search", folder, "--queries", queries, "--run", "out.trec"))
        assert f"{name!r}" in message and "white space" in message
        assert not list(Path().glob("*out*"))
    assert rows(run("search", "notes.lance", "fleas"))[0][3] == "my fleas.txt", "elsewhere it has"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "nothing.txt", "--to", "x.lance"], "no file or folder nothing.txt"),
        (["index", "bad.jsonl", "--to", "x.lance"], "bad.jsonl:2: line: not JSON"),
        (["index", "ids.jsonl", "--to", "x.lance"], "ids.jsonl: document 2: id: not a string"),
        (["index", "names.jsonl", "--to", "x.lance"], "names.jsonl: document 1: vector: a reserved name"),
        (["index", "kinds.jsonl", "--to", "x.lance"], "year: values of different kinds"),
        (["index", "a.csv", "--to", "x.lance"], "a.csv:1: header: no column 'text'"),
        (["index", "bytes", "--to", "x.lance"], "bytes/a.txt: file: not UTF-8"),
        (["index", "a.txt", "--to", "a.txt"], "a.txt"),
        (["index", "a.txt", "--to", "x.lance", "--model", "./nothing"], "the model './nothing'"),
        (["index", "a.txt", "--to", "x.lance", "--device", "abacus"], "the device abacus"),
        (["index", "notes", "--info"], "There is no index in notes"),
        (["index", "a.txt", "--info"], "a.txt"),
        (["search", "notes", QUERY], "There is no index in notes"),
        (["search", "nothing", QUERY], "There is no index in nothing"),
        (["search", "a.txt", QUERY], "a.txt"),
        (["search", "foreign", QUERY], "The table in foreign is not an index of e2rank-st"),
        (["search", "INDEX", " "], "QUERY: empty"),
        (["search", "INDEX", "\udcff"], "QUERY: half a character"),
        (["search", "INDEX", "--queries", "nothing.txt"], "nothing.txt: No such file"),
        (["search", "INDEX", QUERY, "--model", "./nothing"], "the model './nothing'"),
    ],
)
def test_errors_are_one_line(run, searched: SearchIndex, model: str, arguments: list[str], message: str):
    """Guards against a traceback for a user's mistake, a status of 0, and an error without its place."""
    files = {
        "bad.jsonl": '{"text": "one"}\n{"text"\n',
        "ids.jsonl": '{"text": "one"}\n{"text": "two", "id": true}\n',
        "names.jsonl": '{"text": "one", "vector": [1.0]}\n',
        "kinds.jsonl": '{"text": "one", "year": 2001}\n{"text": "two", "year": "2002"}\n',
        "a.csv": "id,body\n1,one\n",
        "a.txt": FLEAS,
        "notes/a.txt": FLEAS,
    }
    write(files)
    Path("bytes").mkdir()
    Path("bytes/a.txt").write_bytes(b"caf\xe9")
    lancedb.connect("foreign").create_table("documents", [{"text": "one"}])
    arguments = [place(searched) if part == "INDEX" else part for part in arguments]
    if arguments[0] == "index" and not {"--model", "--info"} & set(arguments):
        arguments += ["--model", model]
    assert message in error_of(run(*arguments))
    assert all(Path(name).read_text() == text for name, text in files.items()), "the user's files stay"


def test_the_indexs_own_model_is_loaded(run, searched: SearchIndex, model: str, monkeypatch: pytest.MonkeyPatch):
    """Guards against the bundled model in place of the one that made the index, and against a name told twice."""
    import e2rank_st.loading as loading

    names: list[str] = []
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda name, **options: names.append(name) or load(name, **options))
    write({"a.txt": FLEAS})
    rows(run("search", place(searched), QUERY))
    assert run("index", "a.txt", "--to", "a.lance", "--model", model).exit_code == 0
    assert run("index", "a.txt", "--to", "a.lance").exit_code == 0
    assert names == [model] * 3


def test_a_model_of_a_relative_path(run, model: str, monkeypatch: pytest.MonkeyPatch):
    """Guards against an index that finds its model from one folder only."""
    write({"a.txt": FLEAS, "elsewhere/b.txt": ""})
    Path("mine").symlink_to(model)
    assert run("index", "a.txt", "--to", "a.lance", "--model", "mine").exit_code == 0
    assert rows(run("search", "a.lance", QUERY))[0][4] == FLEAS
    monkeypatch.chdir("elsewhere")
    assert rows(run("search", "../a.lance", QUERY))[0][4] == FLEAS


def test_a_wrong_model_is_refused(run, searched: SearchIndex):
    """Guards against vectors of two models: silent nonsense. The message names the difference."""
    write({"a.txt": FLEAS})
    before = searched.info()
    for command in (["search", place(searched), QUERY], ["index", "a.txt", "--to", place(searched)]):
        message = error_of(run(*command, "--model", "bundled"))
        assert "does not give the vectors of this index: it differs in" in message
        assert "weights (" in message and "dimension (32 then, 384 now)" in message
    assert searched.info() == before


def test_passages(run, model: str):
    """Guards against an option that is taken and not used, and against an index with vectors of two kinds."""
    write({"a.txt": " ".join(f"number {row}" for row in range(20_000)), "b.txt": FLEAS})
    made = run("index", "b.txt", "--to", "a.lance", "--model", model, "--long-documents", "passages")
    assert made.exit_code == 0, made.stderr
    assert SearchIndex.open("a.lance").info()["long_documents"] == "passages"
    assert rows(run("search", "a.lance", QUERY))[0][4] == FLEAS
    assert run("index", "a.txt", "--to", "a.lance").exit_code == 0  # as the index has it
    assert len(SearchIndex.open("a.lance")) == 2
    assert "long_documents='passages'" in error_of(run("index", "b.txt", "--to", "a.lance", "--long-documents", "cut"))


def test_source_and_index_the_wrong_way_round(run, searched: SearchIndex):
    """Guards against an index that is written between the user's own files."""
    write({"notes/a.txt": FLEAS})
    result = run("index", place(searched), "--to", "notes")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is an index; name the documents first" in " ".join(result.stderr.split())
    assert [path.name for path in Path("notes").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("command", ["index", "search"])
def test_help_needs_no_torch(command: str):
    """Guards against help that takes seconds of imports, or leaves the first command to guesswork."""
    code = (
        "import sys; from e2rank_st.cli.app import app\n"
        f"try: app(['{command}', '--help'])\n"
        f"finally: print('imported', sorted({HEAVY} & sys.modules.keys()))"
    ).replace(f"{HEAVY}", f"set({HEAVY})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"Examples:\n    e2rank {command} " in done.stdout
    assert "imported []" in done.stdout
