"""Hostile rows: whatever a file holds, the error has its place, and skipping counts it."""

import datetime
import decimal
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.files import DataError, json_row, parse_rows
from e2rank_st.data.formats import open_slates, read_columns, read_rankings, read_results
from e2rank_st.data.slates import Manifest, Slate, read_manifest, read_slates, write_slates
from e2rank_st.data.trec import read_qrels, read_run
from tests.data.test_formats import COLUMNS, RANKING, RESULTS

SLATE = {"query": "q", "documents": ["a", "b"], "labels": [1, 0]}
FORMS = [(read_slates, SLATE), (read_rankings, RANKING), (read_columns, COLUMNS), (read_results, RESULTS)]
# None of these is JSON that a row may hold, in whichever field.
HOSTILE = (
    "9" * 400, "-" + "9" * 5000, "[" + "9" * 400 + ", 1]", "1e400", "-1e0400", "9" * 320 + ".5", "NaN", "[NaN, 1]",
    "-Infinity", '{"a": [Infinity]}', "[" * 200_000, "[" * 200_000 + "]" * 200_000, "[" * 101 + "]" * 101,
    '{"a":' * 200_000 + "1" + "}" * 200_000, '"\\ud800"', '["\\uDFFF", "b"]', '{"\\ud800": 1}', '{"a": 1, "a": 2}',
    '"a\x00b"', '"a', "{", "1_0", "nul", "'a'", '"\\x41"', "01",
)  # fmt: skip


def hostile(good: dict[str, Any]) -> Iterator[str]:
    """Lines that hold each hostile value in each field of a good row, and in a further field."""
    for field in (*good, "further"):
        for value in HOSTILE:
            fields = {name: json.dumps(content) for name, content in good.items()} | {field: value}
            yield "{" + ", ".join(f"{json.dumps(name)}: {content}" for name, content in fields.items()) + "}"
        yield json.dumps(good)[:-1] + f", {json.dumps(field)}: 1, {json.dumps(field)}: 2}}"


@pytest.mark.parametrize(("read", "good"), FORMS)
def test_hostile_json_has_its_place(read, good: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Guards against OverflowError and RecursionError without file and line, and against values that are no JSON."""
    path, lines = tmp_path / "data.jsonl", list(hostile(good))
    for line in lines:
        path.write_text(f"{json.dumps(good)}\n{line}\n", encoding="utf-8")
        with pytest.raises(DataError) as error:
            list(read(path))
        assert error.value.place == f"{path}:2", line[:200]
        assert len(str(error.value)) < 500 + len(str(path))
    path.write_text("\n".join([*lines, json.dumps(good)]), encoding="utf-8")
    assert len(list(read(path, skip_bad_rows=True))) == 1
    assert f"Skipped {len(lines)} of {len(lines) + 1} rows" in caplog.text


def test_harmless_json_is_read():
    """Guards against strictness that refuses what JSON allows."""
    line = r'{"a": "NaN \ud83d\ude00 \u0000 Infinity", "b": [1e-400, 1e300, -0.0], "c": 12345678901234567890, "d": {}}'
    assert json_row(line.encode()) == json.loads(line)
    brackets = {"text": "[" * 500 + "{" * 500, "deep": json.loads("[" * 90 + "]" * 90)}
    assert json_row(json.dumps(brackets).encode()) == brackets


def text(*values: bytes) -> pa.Array:
    """A column of texts that nobody has checked."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


@pytest.mark.parametrize(
    ("field", "column", "reason"),
    [
        ("query", pa.array([b"q", b"q"]), "query: not a string"),
        ("query", pa.array([{"a": 1}, {"a": 2}]), "query: not a string"),
        ("query", pa.array([decimal.Decimal(1)] * 2), "query: not a string"),
        ("query", pa.array([datetime.datetime(2026, 1, 1)] * 2), "query: not a string"),
        ("query", pa.array([1, 2**62], pa.timestamp("us", tz="Nowhere/None")), "query: cannot be read"),
        ("query", pa.nulls(2), "query: missing"),
        ("query", text(b"\xff", b"\xff"), "query: cannot be read"),
        ("documents", pa.ListArray.from_arrays([0, 2, 4], text(*[b"a", b"\xff"] * 2)), "documents: cannot be read"),
        ("documents", pa.array([[{"text": "a"}, {"text": "b"}]] * 2), "documents: a text is not a string"),
        ("labels", pa.array([[1.0, float("nan")]] * 2), "labels: not a number"),
        ("labels", pa.array([[1.0, 1e39]] * 2), "labels: too large"),
        ("labels", pa.array([[True, False]] * 2), "labels: not a number"),
        ("labels", pa.array([[1, 2**62]] * 2, pa.list_(pa.timestamp("ns"))), "labels: not a number"),
        ("labels", pa.array([[1, 2]] * 2, pa.list_(pa.duration("s"))), "labels: not a number"),
        ("labels", pa.array([[("a", 1), ("b", 2)]] * 2, pa.map_(pa.string(), pa.int64())), "labels: not a number"),
        ("source", pa.array([1, 2]), "source: not a string"),
    ],
)  # fmt: skip
def test_hostile_parquet_has_its_place(
    field: str, column: pa.Array, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Guards against pyarrow's errors without file and row, and columns of a type that is taken for another."""
    good = {name: pa.array([value] * 2) for name, value in SLATE.items()}
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table(good | {field: column}), path)
    with pytest.raises(DataError, match=f"^{path}:row 1: {reason}; "):
        list(read_slates(path))
    assert list(read_slates(path, skip_bad_rows=True)) == []
    assert caplog.messages == [f"Skipped 2 of 2 rows of {path}: {reason} (2)."]


def test_parquet_of_unusual_types_is_read(tmp_path: Path):
    """Guards against refusing what only looks different, or has a bad value in a field that nobody reads."""
    path = tmp_path / "data.parquet"
    columns = {
        "query": pa.array(["q", "q"]).dictionary_encode(),
        "documents": pa.array([["a", "b"]] * 2, pa.large_list(pa.large_string())),
        "labels": pa.array([[decimal.Decimal("1.5"), decimal.Decimal(0)]] * 2),
        "seen": pa.array([1, 2**62], pa.timestamp("us")),  # beyond Python's dates
        "raw": text(b"a", b"\xff"),
    }
    pq.write_table(pa.table(columns), path)
    assert list(open_slates(path)) == [Slate("q", ("a", "b"), (1.5, 0))] * 2
    pq.write_table(pa.Table.from_arrays([*columns.values()][:3] * 2, names=[*"abc", *"abc"]), path)
    with pytest.raises(DataError, match=f"^{path}: header: a column twice; got 'a' twice"):
        list(open_slates(path))


def test_flipped_bits_of_a_parquet_file_are_named(tmp_path: Path):
    """Guards against pyarrow's many kinds of errors for a damaged file, and their lack of its name."""
    path, draw = tmp_path / "data.parquet", random.Random(0)
    write_slates(path, [Slate(f"q{number}", ("a" * 50, f"b{number}"), (1, 0)) for number in range(50)], Manifest("x"))
    whole, refused = path.read_bytes(), 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            list(read_slates(path))
        except DataError as error:
            assert str(error).startswith(str(path))
            refused += 1
    assert refused > 50, "the premise"


def test_form_is_that_of_the_first_good_row(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Guards against a file that is refused for its first row where bad rows are to be left out."""
    path = tmp_path / "data.jsonl"
    path.write_text(f'NaN\n{{"other": 1}}\n{json.dumps(SLATE)}\n', encoding="utf-8")
    with pytest.raises(DataError, match=f"^{path}:1: line: not"):
        open_slates(path)
    assert len(list(open_slates(path, skip_bad_rows=True))) == 1
    assert len(caplog.messages) == 1 and "Skipped 2 of 3 rows" in caplog.text


def test_hostile_tables_have_their_place(tmp_path: Path):
    """Guards against half a text behind a tab, and lines that are not counted."""
    for name, content in (("corpus", "_id\ttext\nd1\ta\n"), ("queries", "_id\ttext\nq1\tone\n")):
        (tmp_path / f"{name}.tsv").write_text(content, encoding="utf-8")
    path = tmp_path / "qrels_train.tsv"
    good = b"query-id\tcorpus-id\tscore\nq1\td1\t1\n"
    for line, reason in (
        (b"q1\td1\t1\t2\n", "line: too many fields"),
        (b"q1\td1\n", "score: not a number"),
        (b"q1\td1\t\xff\n", "line: not UTF-8"),
        (b"q1\td1\t1\x00\n", "line: a null byte"),
        (b"q1\td1\t1e999\n", "score: not a number"),
    ):
        path.write_bytes(good + line)
        with pytest.raises(DataError, match=f"^{path}:3: {reason}; "):
            JudgedCorpus.load(tmp_path, "train")
        assert JudgedCorpus.load(tmp_path, "train", skip_bad_rows=True).judgements == {"q1": {"d1": 1}}
    path.write_bytes(b"query-id\tcorpus-id\tscore\tscore\n")
    with pytest.raises(DataError, match=f"^{path}:1: header: a column twice"):
        JudgedCorpus.load(tmp_path, "train", skip_bad_rows=True)


def test_hostile_judgements_and_runs_have_their_place(tmp_path: Path):
    """Guards against an error of the decoder that does not say which of fifty files it is about."""
    path = tmp_path / "file"
    for read, good, bad in (
        (read_qrels, "q 0 d 1", "q 0 e {}"),
        (read_run, "q Q0 d 1 0.5 s", "q Q0 e 1 {} s"),
    ):
        for value in (b"9" * 400, b"NaN", b"-inf", b"1e400", b"\xff", b"\x00", b"[1]"):
            path.write_bytes(b"\xef\xbb\xbf" + good.encode() + b"\n\n" + bad.encode().replace(b"{}", value) + b"\n")
            with pytest.raises(DataError, match=f"^{path}:3: "):
                read(path)


def test_a_damaged_manifest_is_named(tmp_path: Path):
    """Guards against an error that names neither the manifest nor the cure."""
    for content in ("[1]", "{", "[" * 200_000, '{"source": 1, "source": 2, "more": 3}'):
        (tmp_path / "data.manifest.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"data\.manifest\.json is damaged .*; write the slates again"):
            read_manifest(tmp_path / "data.parquet")


def test_parsers_get_rows_of_their_fields(tmp_path: Path):
    """Guards against rows of a parquet file that are different from those of JSON lines."""
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", None]}), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text('{"a": 1, "b": "x"}\n{"a": 2, "b": null}\n', encoding="utf-8")
    parquet, lines = (list(parse_rows(tmp_path / f"rows.{ending}", dict)) for ending in ("parquet", "jsonl"))
    assert parquet == lines
