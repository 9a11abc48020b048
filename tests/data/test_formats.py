"""Readers: each form is read in full, and each way in which a row can be bad is refused with its place, or counted."""

import gzip
import json
import logging
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e2rank_st.data.beir import JudgedCorpus, TextStore
from e2rank_st.data.formats import open_slates, read_beir, read_columns, read_rankings, read_results
from e2rank_st.data.slates import DataError, Manifest, Slate, write_slates

RANKING = {"source": "nq", "query": "q", "document": ["a", "b", "c"], "ranking": [3, 1, 2]}
COLUMNS = {"anchor": "q", "positive": "a", "negative_10": "d", "negative_2": "c", "negative_1": "b", "score": 1}
RESULTS = {
    "query": "q",
    "hits": [
        {"content": "a", "qid": 7, "docid": "d1", "rank": 1, "score": 3.0},
        {"content": "b", "qid": 7, "docid": "d2", "rank": 2, "score": 2.0},
        {"content": "c", "qid": 7, "docid": "d3", "rank": 3, "score": 1.0},
    ],
}
QRELS = "7 0 d1 1\n7 0 d3 3\n\n8 0 d1 2\n"
CORPUS = [
    {"_id": "d1", "title": "Fleas", "text": "live long"},
    {"_id": "d2", "title": "", "text": "b"},
    {"_id": 3, "title": "Title alone", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}, {"_id": "q3", "text": "of another split"}]
JUDGED = [
    {"query-id": "q2", "corpus-id": "d2", "score": 0},
    {"query-id": "q1", "corpus-id": "d1", "score": 2},
    {"query-id": "q2", "corpus-id": "3", "score": 1},
]


def write_rows(path: Path, rows: Iterable[object]) -> Path:
    """Write rows in the form that the file's name says; a string is written to JSON lines as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.name.endswith(".tsv"):
        lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


def beir_folder(folder: Path, ending: str = ".jsonl", **changes: list) -> Path:
    """A folder in BEIR's layout, with other rows for some of its files."""
    for name, rows in {"corpus": CORPUS, "queries": QUERIES, "qrels_train": JUDGED, **changes}.items():
        rows = [{**row, "_id": str(row["_id"])} if "_id" in row else row for row in rows]
        write_rows(folder / f"{name}{ending}", rows)
    return folder


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_forms(ending: str, tmp_path: Path):
    """Guards against 1-based places taken for 0-based or for ranks, padding taken for a document, and lost grades."""
    path = write_rows(tmp_path / f"public{ending}", [RANKING, {**RANKING, "source": "trivia"}])
    first, second = read_rankings(path)
    assert first == Slate("q", ("a", "b", "c"), (1, 0, 2), (False,) * 3, "nq"), "document 3 is the best"
    assert second.source == "trivia"
    marked = Slate("q", ("a", "b", "c"), (1, 0, 2), (False, True, False), "x")
    assert next(read_rankings(path, gold_document=1, source="x")) == marked
    with pytest.raises(DataError, match="document: no gold one; got 3, gold_document=3"):
        next(read_rankings(path, gold_document=3))
    path = write_rows(tmp_path / f"pairs{ending}", [COLUMNS, {**COLUMNS, "negative_2": None, "negative_10": None}])
    assert list(read_columns(path)) == [
        Slate("q", ("a", "b", "c", "d"), (1, 0, 0, 0), (True, False, False, False), "pairs"),
        Slate("q", ("a", "b"), (1, 0), (True, False), "pairs"),
    ]
    path = write_rows(tmp_path / f"bm25{ending}", [RESULTS])
    (tmp_path / "qrels.txt").write_text(QRELS, encoding="utf-8")
    assert list(read_results(path)) == [Slate("q", ("a", "b", "c"), (2, 1, 0), source="bm25")]
    graded = [Slate("q", ("a", "b", "c"), (1, None, 3), (False, False, True), "dl")]
    assert list(read_results(path, qrels=tmp_path / "qrels.txt", gold_from=2, source="dl")) == graded


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet", ".tsv"])
def test_beir(ending: str, tmp_path: Path):
    """Guards against lost titles, lost grades, or queries of another split."""
    folder = beir_folder(tmp_path / "facts", ending)
    two = Slate("two", ("b", "Title alone"), (0, 1), (False, True), "facts")
    one = Slate("one", ("Fleas live long",), (2,), (True,), "facts")
    assert list(read_beir(folder)) == [two, one]
    assert [slate.gold for slate in read_beir(folder, gold_from=2)] == [(False, False), (True,)]
    assert len(JudgedCorpus.load(folder, "train").queries) == 3


def test_beir_as_published(tmp_path: Path):
    """Guards against a folder that only this project's layout fits: BEIR's own has qrels/{split}.tsv."""
    folder = beir_folder(tmp_path / "facts")
    (folder / "qrels_train.jsonl").unlink()
    write_rows(folder / "qrels" / "test.tsv", JUDGED)
    assert [slate.query for slate in read_beir(folder, split="test")] == ["two", "one"]
    with pytest.raises(FileNotFoundError, match=r"qrels_train\.parquet.* Its splits: test; give a folder"):
        next(read_beir(folder))


@pytest.mark.parametrize(
    ("read", "good", "bad", "reason"),
    [
        (read_rankings, RANKING, {**RANKING, "ranking": [1, 1, 3]}, "ranking: not a permutation"),
        (read_rankings, RANKING, {**RANKING, "ranking": [0, 1, 2]}, "ranking: not a permutation"),
        (read_rankings, RANKING, {**RANKING, "ranking": [1, 2, 4]}, "ranking: not a permutation"),
        (read_rankings, RANKING, {**RANKING, "ranking": [1, 2, "3"]}, "ranking: not a permutation"),
        (read_rankings, RANKING, {**RANKING, "ranking": [True, 2, 3]}, "ranking: not a permutation"),
        (read_rankings, RANKING, {**RANKING, "ranking": [1, 2]}, "ranking: lengths differ"),
        (read_rankings, RANKING, {**RANKING, "ranking": None}, "ranking: missing"),
        (read_rankings, RANKING, {**RANKING, "document": "abc"}, "document: not a list"),
        (read_rankings, RANKING, {**RANKING, "document": ["a", " ", "c"]}, "document: a text is empty"),
        (read_rankings, RANKING, {**RANKING, "document": [], "ranking": []}, "document: empty"),
        (read_rankings, RANKING, {**RANKING, "query": ""}, "query: empty"),
        (read_rankings, RANKING, {"document": ["a"], "ranking": [1]}, "query: missing"),
        (read_rankings, RANKING, "[1, 2]", "line: not a JSON object"),
        (read_rankings, RANKING, '{"query": "q"', "line: not JSON"),
        (read_columns, COLUMNS, {**COLUMNS, "anchor": "\t"}, "anchor: empty"),
        (read_columns, COLUMNS, {**COLUMNS, "positive": None}, "positive: missing"),
        (read_columns, COLUMNS, {**COLUMNS, "negative_1": ["b"]}, "negative_1: not a string"),
        (read_results, RESULTS, {**RESULTS, "hits": []}, "documents: empty"),
        (read_results, RESULTS, {**RESULTS, "hits": None}, "hits: missing"),
        (read_results, RESULTS, {**RESULTS, "hits": ["a"]}, "content: missing"),
        (read_results, RESULTS, {**RESULTS, "hits": RESULTS["hits"][::-1]}, "hits: not in order"),
        (read_results, RESULTS, {**RESULTS, "hits": [{"content": ""}]}, "content: empty"),
        (read_results, RESULTS, {**RESULTS, "query": 5}, "query: not a string"),
    ],
)
def test_bad_row(read, good, bad, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Guards against a bad row that is trained on, or that nobody can find; and against rows skipped in silence."""
    path = write_rows(tmp_path / "data.jsonl", [good, "", bad, bad, good])
    with pytest.raises(DataError, match=f"^{path}:3: {reason}; ") as error:
        list(read(path))
    assert error.value.place == f"{path}:3"
    with caplog.at_level(logging.INFO, logger="e2rank_st"):
        assert len(list(read(path, skip_bad_rows=True))) == 2
    assert caplog.messages == [f"Skipped 2 of 4 rows of {path}: {reason} (2)."]


@pytest.mark.parametrize(
    ("file", "rows", "reason"),
    [
        ("corpus", [*CORPUS, {"_id": "d1", "text": "again"}], "corpus.jsonl:4: _id: appears twice"),
        ("corpus", [*CORPUS, {"_id": "d4", "title": None, "text": ""}], "corpus.jsonl:4: text: empty"),
        ("corpus", [*CORPUS, {"_id": "d4", "text": ["b"]}], "corpus.jsonl:4: text: not a string"),
        ("corpus", [*CORPUS, {"text": "b"}], "corpus.jsonl:4: _id: missing"),
        ("queries", [*QUERIES, {"_id": "q4"}], "queries.jsonl:4: text: missing"),
        ("qrels_train", [*JUDGED, {**JUDGED[0], "query-id": "q9"}], "qrels_train.jsonl:4: query-id: unknown"),
        ("qrels_train", [*JUDGED, {**JUDGED[0], "corpus-id": "d9"}], "qrels_train.jsonl:4: corpus-id: unknown"),
        ("qrels_train", [*JUDGED, {**JUDGED[0], "score": 1}], "qrels_train.jsonl:4: score: judged twice"),
        ("qrels_train", [*JUDGED, {**JUDGED[0], "score": "high"}], "qrels_train.jsonl:4: score: not a number"),
        ("qrels_train", [*JUDGED, {**JUDGED[0], "score": float("nan")}], "qrels_train.jsonl:4: score: not a number"),
        ("qrels_train", [*JUDGED, {"corpus-id": "d1", "score": 1}], "qrels_train.jsonl:4: query-id: missing"),
    ],
)
def test_bad_row_in_beir(file: str, rows: list, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Guards against a folder whose parts do not belong together."""
    rows = [row if "_id" not in row else {**row, "_id": str(row["_id"])} for row in rows]
    folder = beir_folder(tmp_path / "facts", **{file: []})
    write_rows(folder / f"{file}.jsonl", rows)
    with pytest.raises(DataError, match=f"{reason}; "):
        list(read_beir(folder))
    assert len(list(read_beir(folder, skip_bad_rows=True))) == 2
    assert caplog.messages == [f"Skipped 1 of 4 rows of {folder / file}.jsonl: {reason.split(': ', 1)[1]} (1)."]


@pytest.mark.parametrize(
    ("qrels", "reason"),
    [
        ("7 0 d1 1\n7 0 d1 2\n", "qrels.txt:2: grade: judged twice"),
        ("7 0 d1\n", "qrels.txt:1: line: not a judgement"),
        ("7 0 d1 good\n", "qrels.txt:1: grade: not a number"),
        ("8 0 d1 1\n", "bm25.jsonl:1: qid: unjudged query"),
    ],
)
def test_bad_qrels(qrels: str, reason: str, tmp_path: Path):
    """Guards against judgements of another collection, which would make every passage unjudged."""
    path = write_rows(tmp_path / "bm25.jsonl", [RESULTS])
    (tmp_path / "qrels.txt").write_text(qrels, encoding="utf-8")
    with pytest.raises(DataError, match=f"{reason}; "):
        list(read_results(path, qrels=tmp_path / "qrels.txt"))


def test_damaged_files_are_named(tmp_path: Path):
    """Guards against a library's error that does not say which of fifty files was cut off, and against skipping it."""
    whole = write_rows(tmp_path / "whole.jsonl.gz", [RANKING] * 500).read_bytes()
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole[:-20])
    table = write_rows(tmp_path / "whole.parquet", [RANKING] * 500).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(table[:-20])
    (tmp_path / "plain.jsonl.gz").write_text("no gzip", encoding="utf-8")
    for name in ("cut.jsonl.gz", "cut.parquet", "plain.jsonl.gz"):
        with pytest.raises(DataError, match=f"{name}: file: damaged; "):
            list(read_rankings(tmp_path / name, skip_bad_rows=True))
    (tmp_path / "latin.jsonl").write_bytes(b'{"query": "\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl:1: line: not UTF-8; "):
        list(read_rankings(tmp_path / "latin.jsonl"))
    with pytest.raises(FileNotFoundError):
        list(read_rankings(tmp_path / "none.parquet"))


def test_open_slates_tells_the_form(tmp_path: Path):
    """Guards against a file read as something else, and against options that are silently dropped."""
    (tmp_path / "qrels.txt").write_text(QRELS, encoding="utf-8")
    slate = Slate("q", ("a", "b"), (1, 0), source="mine")
    write_slates(tmp_path / "slates.parquet", [slate], Manifest("test"))
    assert list(open_slates(tmp_path / "slates.parquet")) == [slate]
    ranking = write_rows(tmp_path / "public.parquet", [RANKING])
    assert next(open_slates(ranking, gold_document=0)).gold == (True, False, False)
    columns = tmp_path / "pairs.jsonl"
    columns.write_bytes(b"\xef\xbb\xbf" + json.dumps(COLUMNS).encode())  # as some editors write it
    assert len(next(open_slates(columns))) == 4
    results = write_rows(tmp_path / "bm25.jsonl.gz", [RESULTS])
    assert next(open_slates(results, qrels=tmp_path / "qrels.txt")).labels == (1, None, 3)
    assert len(list(open_slates(beir_folder(tmp_path / "facts"), split="train"))) == 2
    with pytest.raises(TypeError, match="split"):
        open_slates(columns, split="train")
    # The message says which columns were expected.
    other = write_rows(tmp_path / "other.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match="has the columns text; slates are read from files with documents, labels, "):
        open_slates(other)
    with pytest.raises(ValueError, match=r"form of .*other\.csv is unknown; its name must end in \.parquet, "):
        open_slates(write_rows(tmp_path / "other.csv", []))
    with pytest.raises(DataError, match=r"broken\.jsonl:1: line: not JSON; "):
        open_slates(write_rows(tmp_path / "broken.jsonl", ["no json"]))
    with pytest.raises(DataError, match="file: empty"):
        open_slates(write_rows(tmp_path / "empty.jsonl", []))


def test_texts_are_a_mapping_on_disk():
    """Guards against a corpus that loses its order, its odd texts, or takes an id twice."""
    pairs = {str(number): f"text {number} \x00 é 🇬🇷" for number in range(50, 0, -1)}
    texts = TextStore()
    for pair in pairs.items():
        texts.add(*pair)
    assert dict(texts) == pairs
    assert list(texts) == list(pairs)
    assert "7" in texts and "x" not in texts and len(texts) == 50
    with pytest.raises(KeyError):
        texts["x"]
    with pytest.raises(DataError, match="_id: appears twice"):
        texts.add("7", "again")
    assert texts["7"] == pairs["7"]
