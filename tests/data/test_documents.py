"""Documents: the texts of a file, and the place of a bad line."""

import csv
import datetime
import gzip
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from e2rank_st.data import files
from e2rank_st.data.documents import iter_documents, read_documents
from e2rank_st.data.files import DataError


def taken(documents: Iterator[dict[str, Any]]) -> tuple[list[str], str]:
    """The texts that come before an error, and its message."""
    texts = []
    try:
        for document in documents:
            texts.append(document["text"])
    except ValueError as error:
        return texts, str(error)
    return texts, ""


def written(folder: Path, contents: dict[str, str | bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": "two"}\n{"text": 3}\n', "a.jsonl:3: text: not a string"),
        ("a.txt", b"one\ntwo\n\xff\n", "a.txt:3: line: not UTF-8"),
        ("a.csv", "text,id\none,1\ntwo,2\nthree\n", "a.csv:4: line: lengths differ"),
    ],
)
def test_a_bad_line_comes_after_the_good_ones(tmp_path: Path, name: str, content: str | bytes, message: str):
    """Guards against a file that is read as a whole before its first document comes: it may be larger than memory."""
    source = str(written(tmp_path, {name: content}) / name)
    found, error = taken(iter_documents(source))
    assert found == ["one", "two"]
    assert message in error
    with pytest.raises(DataError):
        read_documents(source)


def test_reading_starts_with_the_first_document(tmp_path: Path):
    """Guards against work, and an error, before anybody asks for a document."""
    documents = iter_documents(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError):
        next(documents)


@pytest.mark.parametrize("name", ["a.parquet", "a.PARQUET"])
def test_parquet(tmp_path: Path, name: str):
    """Guards against values that become text, rows that are lost or in another order, and an empty one left out."""
    day = datetime.date(2020, 2, 29)
    rows = [
        {"id": f"d{row}", "text": f"text {row}" if row else "", "year": row, "tags": ["a", "b"], "day": day}
        for row in range(300)  # more than a batch
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "made", row_group_size=90)
    (tmp_path / "made").rename(tmp_path / name)
    found = list(iter_documents(str(tmp_path / name)))
    assert found == rows == read_documents(str(tmp_path / name))
    assert all(type(document) is dict for document in found)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["one", "two"]}, r"a\.parquet:row 1: text: missing; the row has 'body'"),
        ({"text": ["one", None]}, r"a\.parquet:row 2: text: missing"),
        ({"text": [1, 2]}, r"a\.parquet:row 1: text: not a string; got int 1"),
        ({"text": ["one", " "]}, r"a\.parquet:row 2: text: empty"),
        ({"text": pd.Series([], dtype=str)}, r"a\.parquet holds no documents"),
    ],
)
def test_errors_of_parquet_name_the_row(tmp_path: Path, columns: dict, message: str):
    """Guards against a table without texts that is read, and against an error without its place."""
    pd.DataFrame(columns).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        read_documents(str(tmp_path / "a.parquet"))


def test_damaged_parquet_is_named(tmp_path: Path):
    """Guards against an error of Arrow's, without the file, and against a missing file that counts as damaged."""
    written(tmp_path, {"a.parquet": "id,text\n1,one\n"})
    with pytest.raises(DataError, match=r"a\.parquet: file: damaged; "):
        read_documents(str(tmp_path / "a.parquet"))
    with pytest.raises(FileNotFoundError):
        read_documents(str(tmp_path / "b.parquet"))


def test_parquet_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a table that is read as a whole: a bad row comes after the good ones before it."""
    monkeypatch.setattr(files, "BATCH_ROWS", 2)
    texts = [f"text {row}" for row in range(7)]
    pd.DataFrame({"text": [*texts, None, "more"]}).to_parquet(tmp_path / "a.parquet")
    found, error = taken(iter_documents(str(tmp_path / "a.parquet")))
    assert found == texts
    assert "a.parquet:row 8: text: missing" in error


def test_a_folder_of_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Guards against files in the order of the disk, line ends and marks that change, and files nobody meant."""
    contents: dict[str, str | bytes] = {
        "b.txt": "\ufeffone\n\n two\r\n",
        "a.MD": "# Title\n",
        "größe/c.rst": "three",
        "a b/deep/d.text": "four",
        "a b/c.org": "five",
        "Z.adoc": "six",
        ".hidden.txt": "no",
        ".git/e.txt": "no",
        "a b/.cache/f.md": "no",
        "blank.txt": " \n\t\n",
        "empty.txt": b"",
        "page.pdf": b"\xff\xfe",
        "a b/data.jsonl": '{"text": "no"}',
        "README": "no",
    }
    source = str(written(tmp_path / "notes", contents))
    with caplog.at_level(logging.WARNING, "e2rank_st"):
        found = list(iter_documents(source))
    assert found == [
        {"id": "Z.adoc", "text": "six"},
        {"id": "a.MD", "text": "# Title\n"},
        {"id": "b.txt", "text": "one\n\n two\r\n"},
        {"id": "a b/c.org", "text": "five"},
        {"id": "a b/deep/d.text", "text": "four"},
        {"id": "größe/c.rst", "text": "three"},
    ]
    record, blank = [record for record in caplog.records if record.name.startswith("e2rank_st")]
    endings = ".txt, .text, .md, .markdown, .rst, .org, .adoc, .tex"
    assert record.getMessage() == f"{source}: left out 3 files that do not end in {endings}."
    assert blank.getMessage() == f"{source}: left out 2 files without text."
    assert found == read_documents(source) == read_documents(f"{source}/")


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path):
    """Guards against a rule for what lies below a folder that hits the folder itself."""
    source = written(tmp_path / ".notes", {"a.txt": "one"})
    assert read_documents(str(source)) == [{"id": "a.txt", "text": "one"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", "not UTF-8; .* convert the file"),
        ("text".encode("utf-16"), "not UTF-8"),
        (gzip.compress(b"text", mtime=0), "unpack the file with gunzip"),
        (b"a\x00b", "a null byte"),
    ],
)
def test_errors_of_a_folder_name_the_file(tmp_path: Path, content: bytes, message: str):
    """Guards against one bad file in a thousand without its name, and one that costs those before it."""
    source = str(written(tmp_path, {"a.txt": "one", "b/bad.txt": content, "b/c.txt": "three"}))
    found, error = taken(iter_documents(source))
    assert found == ["one"]
    assert error.startswith(f"{source}/b/bad.txt: file: ")
    with pytest.raises(DataError, match=message):
        read_documents(source)


def test_links_in_a_folder(tmp_path: Path):
    """Guards against a walk without an end, and documents that come twice by another name."""
    notes = written(tmp_path / "notes", {"a.txt": "one", "b/c.txt": "two"})
    (notes / "b" / "up").symlink_to(notes)
    (notes / "self").symlink_to(notes / "self")
    written(tmp_path / "other", {"d.txt": "three"})
    (notes / "e.txt").symlink_to(tmp_path / "other" / "d.txt")
    found = read_documents(str(notes))
    assert [document["id"] for document in found] == ["a.txt", "e.txt", "b/c.txt"]
    assert found[1]["text"] == "three"
    (tmp_path / "link").symlink_to(notes)
    assert read_documents(str(tmp_path / "link")) == found


def test_folders_without_documents(tmp_path: Path):
    """Guards against a folder named as a file of text, and an empty folder that passes for a collection."""
    (tmp_path / "notes" / "folder.txt").mkdir(parents=True)
    assert list(iter_documents(str(tmp_path / "notes"))) == []
    with pytest.raises(ValueError, match="notes holds no documents"):
        read_documents(str(tmp_path / "notes"))
    written(tmp_path / "notes" / "folder.txt", {"a.txt": "one"})
    assert [document["id"] for document in iter_documents(str(tmp_path / "notes"))] == ["folder.txt/a.txt"]


def test_files_are_opened_one_at_a_time(tmp_path: Path):
    """Guards against a folder that is read as a whole: a later file may change, or go, while the first is embedded."""
    source = written(tmp_path, {"a.txt": "one", "b.txt": "two"})
    documents = iter_documents(str(source))
    assert next(documents)["text"] == "one"
    (source / "b.txt").write_text("changed")
    assert next(documents)["text"] == "changed"
