"""Documents: the texts of a file, and the place of a bad line."""

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
        (gzip.compress(b"one\n"), "auto", "<stdin>:1: line: not UTF-8; .* unpack the file with gunzip or zcat"),
    ],
)
def test_errors_name_the_line(monkeypatch: pytest.MonkeyPatch, content: bytes, form: str, message: str):
    """Guards against an error in one of a million lines without its place."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(ValueError, match=message):
        read_documents("-", form)


def test_missing_file_is_an_os_error(tmp_path: Path):
    """Guards against a missing file that counts as an empty one."""
    with pytest.raises(FileNotFoundError):
        read_documents(str(tmp_path / "nothing"))
