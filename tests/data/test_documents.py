"""Documents: the texts of a file, and the place of a bad line."""

import csv
import gzip
import io
from pathlib import Path

import pytest

from e2rank_st.data.documents import read_documents


@pytest.mark.parametrize(
    ("content", "form", "expected"),
    [
        ("one\n\n  two \n", "auto", [{"text": "one"}, {"text": "two"}]),
        ("one\r\ntwo", "auto", [{"text": "one"}, {"text": "two"}]),
        ("\ufeffone\n", "auto", [{"text": "one"}]),
        ("a\u2028b\x0cc\n", "auto", [{"text": "a\u2028b\x0cc"}]),
        ('\n{"text": "one", "id": 7}\n', "auto", [{"text": "one", "id": 7}]),
        ('{"text": "one"}\n', "text", [{"text": '{"text": "one"}'}]),
        ('{"text": ""}\n', "jsonl", [{"text": ""}]),
    ],
)
def test_formats(tmp_path: Path, content: str, form: str, expected: list):
    """Guards against line ends, blank lines and marks that end up in a document, or make one."""
    (tmp_path / "file").write_bytes(content.encode())
    assert read_documents(str(tmp_path / "file"), form) == expected


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        (b"", "auto", "<stdin> holds no documents"),
        (b" \n\n", "jsonl", "<stdin> holds no documents"),
        (b'{"text": "one"}\n\n{"text": \n', "auto", "<stdin>:3: line: not JSON; .* Or use --format text"),
        (b"plain\n", "jsonl", "<stdin>:1: line: not JSON"),
        (b'{"body": "one"}\n', "auto", "<stdin>:1: text: missing; the row has 'body'"),
        (b'{"text": ["one"]}\n', "auto", "<stdin>:1: text: not a string"),
        (b'{"text": "one"}\n["two"]\n', "auto", "<stdin>:2: line: not a JSON object"),
        (b'{"text": "half a pair \\ud800"}\n', "auto", "<stdin>:1: text: half a character"),
        (b"one\n\xff\n", "auto", "<stdin>:2: line: not UTF-8; .* convert the file"),
        (gzip.compress(b"one\n", mtime=0), "auto", "<stdin>:1: line: not UTF-8; .* unpack the file with gunzip"),
    ],
)
def test_errors_name_the_line(monkeypatch: pytest.MonkeyPatch, content: bytes, form: str, message: str):
    """Guards against an error in one of a million lines without its place."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(ValueError, match=message):
        read_documents("-", form)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", 'id,text\n1,one\n2,"two, too"\n', [{"id": "1", "text": "one"}, {"id": "2", "text": "two, too"}]),
        ("a.CSV", '\ufeff"id";"text"\r\n1;one\r\n', [{"id": "1", "text": "one"}]),  # as Excel writes it
        ("a.tsv", "text\tid\none\t1\n", [{"text": "one", "id": "1"}]),
        (
            "a.csv",
            '\nid,text\n\n1,"a ""b""\n\nc"\n\n2,\n',
            [{"id": "1", "text": 'a "b"\n\nc'}, {"id": "2", "text": ""}],
        ),
        ("a.csv", "text\none\ntwo; three\n", [{"text": "one"}, {"text": "two; three"}]),
        ("a.csv", ",text\n0,one\n", [{"": "0", "text": "one"}]),  # as pandas writes it
        ("a.csv", f"text\n{'x' * 200_000}\n", [{"text": "x" * 200_000}]),
    ],
)
def test_tables(tmp_path: Path, name: str, content: str, expected: list):
    """Guards against a header that is ranked, and rows cut at line ends, separators or a length."""
    (tmp_path / name).write_bytes(content.encode())
    limit = csv.field_size_limit()
    assert read_documents(str(tmp_path / name)) == expected
    assert csv.field_size_limit() == limit, "a setting of the whole process"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,title,body\n1,a,b\n", r"a\.csv:1: header: no column 'text'; got 'id', 'title', 'body'; rename one"),
        (b"1,fleas live long\n2,b\n", r"a\.csv:1: header: no column 'text'; .* or use --format text"),
        (b'{"text": "one"}\n', r"a\.csv:1: header: no column 'text'; .* or jsonl"),
        (b"id,text,id\n1,a,2\n", r"a\.csv:1: header: a column twice; got 'id' twice"),
        (b"id,text\n\n1,a,b\n", r"a\.csv:3: line: lengths differ; got 3 fields, and the header has 2; .* in quotes"),
        (b"id,text\n1\n", r"a\.csv:2: line: lengths differ"),
        (b'id,text\n1,"a\n\nb"\n2,"never\nclosed\n', r"a\.csv:5: line: not CSV; unexpected end of data"),
        (b'id,text\n1,"a"b\n', r"a\.csv:2: line: not CSV; "),
        (b"id,text\r1,a\r", r"a\.csv:1: line: not CSV; "),
        (b'id,text\n1,"a\n\xff"\n', r"a\.csv:3: line: not UTF-8"),
        (b"id,text\n1,a\x00\n", r"a\.csv:2: line: a null byte"),
        ("id,text\n1,a\n".encode("utf-16"), r"a\.csv:1: line: not UTF-8; .* convert the file"),
        (b"id,text\n1, \n", r"a\.csv:2: text: empty"),
        (b"id,text\n", r"a\.csv holds no documents"),
    ],
)
def test_errors_of_tables_name_the_line(tmp_path: Path, content: bytes, message: str):
    """Guards against a table read as something else, and against an error without its place."""
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_documents(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("content", ["id,text\n1,a\n", "text\na\n", "id\ttitle\tbody\n1\ta\tb\n", '"id";"text"\n1;a\n'])
def test_a_header_or_a_document(tmp_path: Path, content: str):
    """Guards against a table without a name whose header is ranked in silence: nothing shows its form."""
    (tmp_path / "file").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"file:1: line: unclear; .*; use --format csv or --format text"):
        read_documents(str(tmp_path / "file"))
    lines = content.splitlines()
    assert read_documents(str(tmp_path / "file"), "text") == [{"text": line} for line in lines]


@pytest.mark.parametrize("line", ["Fleas, cats and dogs", "one", "[1] a document", "a; b", "Is it: a, b or c?"])
def test_a_sentence_is_not_a_header(tmp_path: Path, line: str):
    """Guards against documents that are refused for their commas."""
    (tmp_path / "file").write_text(line + "\n", encoding="utf-8")
    assert read_documents(str(tmp_path / "file")) == [{"text": line}]


@pytest.mark.parametrize("content", ['[{"text": "a"}]', '[\n  {"text": "a"}\n]'])
def test_a_json_array_is_refused(tmp_path: Path, content: str):
    """Guards against brackets that are ranked as documents."""
    for name in ("file", "file.json"):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=f"{name}:1: line: not .*; write an object a line"):
            read_documents(str(tmp_path / name))


def test_a_json_line_keeps_what_json_can_express(tmp_path: Path):
    """Guards against NaN that passes through to a line that is no JSON, and half a character in a field beside."""
    for value, reason in (
        ("NaN", "score: not a number"),
        ("1e999", "score: not a number"),
        ('"\\ud800"', "score: half"),
    ):
        (tmp_path / "file").write_text(f'{{"text": "a"}}\n{{"text": "b", "score": {value}}}\n', encoding="utf-8")
        with pytest.raises(ValueError, match=f"file:2: {reason}"):
            read_documents(str(tmp_path / "file"))


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch):
    """Guards against an AttributeError of None."""
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ValueError, match="Standard input is closed; name a FILE"):
        read_documents("-")


def test_missing_file_is_an_os_error(tmp_path: Path):
    """Guards against a missing file that counts as an empty one."""
    with pytest.raises(FileNotFoundError):
        read_documents(str(tmp_path / "nothing"))
