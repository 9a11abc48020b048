"""A file of text, JSON lines, CSV, TSV or parquet, or a folder of text files → documents, one at a time.

An error names file and line. Blank lines are left out, so every reader counts the documents of a file in the same way.
The row of a vector is therefore the ``corpus_id`` of its document.
"""

from __future__ import annotations

import csv
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

from e2rank_st.data.files import (
    BYTE_ORDER_MARK,
    DataError,
    Row,
    decoded,
    distinct_names,
    json_row,
    numbered_lines,
    parse_rows,
    text_field,
)

__all__ = ["Format", "iter_documents", "read_documents"]

logger = logging.getLogger(__name__)

# "text" is one document a line. "jsonl" is one JSON object a line. "csv" is a table with a header; commas, semicolons,
# tabs or bars separate its columns. The last two have the document in "text". "auto" looks at name and first line.
Format: TypeAlias = Literal["auto", "text", "jsonl", "csv"]

ENDINGS: dict[str, Format] = {".csv": "csv", ".tsv": "csv", ".json": "jsonl", ".jsonl": "jsonl", ".ndjson": "jsonl"}
TEXT_FILES = (".txt", ".text", ".md", ".markdown", ".rst", ".org", ".adoc", ".tex")  # what counts in a folder
SEPARATORS = ",;\t|"
NAME = re.compile(r"[A-Za-z_][\w-]*")  # a column's, in a line that may be a header
LONGEST_FIELD = 2**31 - 1  # Python's own limit, 131,072 characters, is shorter than some documents
Line: TypeAlias = tuple[str, bytes]  # place and content


def read_documents(source: str, form: Format = "auto") -> list[dict[str, Any]]:
    """Read all documents of a file, folder or standard input: see :func:`iter_documents`.

    Raises:
        OSError: A file cannot be read.
        ValueError: There are no documents, or one is not valid.
    """
    documents = list(iter_documents(source, form))
    if not documents:
        name = "<stdin>" if source == "-" else source
        raise ValueError(
            f"{name} holds no documents; give one document a line, or a field 'text' in JSON lines or CSV."
        )
    return documents


def iter_documents(source: str, form: Format = "auto") -> Iterator[dict[str, Any]]:
    """Read the documents of a file or folder, or of standard input if ``source`` is ``-``.

    A folder is searched with all its folders for files of text. Each is a document: its ``id`` is the path below the
    folder. Hidden files, and those in hidden folders, are left out.

    Yields:
        One record for each document: ``text`` and the further fields of its JSON object or its row.

    Raises:
        OSError: A file cannot be read.
        ValueError: Nothing shows the form of the file, or a line is not valid. The message names file and line.
        ImportError: The file is parquet and pyarrow is missing.
    """
    name = "<stdin>" if source == "-" else source
    if source == "-" and sys.stdin is None:
        raise ValueError("Standard input is closed; name a FILE, or pipe documents into the command.")
    if source != "-" and Path(source).is_dir():
        yield from _folder(Path(source))
        return
    if Path(name).suffix.lower() == ".parquet":
        yield from parse_rows(source, _row)
        return
    with nullcontext(sys.stdin.buffer) if source == "-" else Path(source).open("rb") as file:
        lines = numbered_lines(file, name, blank=True)
        first = next((line for line in lines if line[1].strip()), None)
        if first:
            form = ENDINGS.get(Path(name).suffix.lower()) or _form(*first) if form == "auto" else form
            yield from _table(lines, first) if form == "csv" else _each_line(chain([first], lines), form)


def _row(row: Row) -> dict[str, Any]:
    found = dict(row)
    _check_text(found)
    return found


def _folder(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the text files below a folder, in the order of their names."""
    others = empty = 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place, name) for name in sorted(files) if not name.startswith(".")):
            if path.suffix.lower() not in TEXT_FILES or not path.is_file():
                others += 1
                continue
            try:
                text = decoded(path.read_bytes().removeprefix(BYTE_ORDER_MARK))
            except DataError as error:
                advice = f"{error.detail} Or move it out of the folder."
                raise DataError("file", error.problem, advice, str(path)) from error.__cause__
            if text.strip():
                yield {"id": path.relative_to(folder).as_posix(), "text": text}
            else:
                empty += 1
    for number, what in ((others, f"that do not end in {', '.join(TEXT_FILES)}"), (empty, "without text")):
        if number:
            logger.warning("%s: left out %d files %s.", folder, number, what)


def _form(place: str, first: bytes) -> Format:
    """Tell the form by the first line, or refuse a line that is a header or a document."""
    if re.match(rb'\s*(\{|\[\s*([{"]|$))', first):
        return "jsonl"
    line = first.decode(errors="replace").strip()  # its reader will refuse what is not UTF-8
    names = line.split(_separator(line))
    if "text" in _stripped(names) or (len(names) > 1 and all(map(NAME.fullmatch, names))):
        advice = f"{line!r:.60} may be a header or a document; use --format csv or --format text."
        raise DataError("line", "unclear", advice, place)
    return "text"


def _each_line(lines: Iterable[Line], form: Format) -> Iterator[dict[str, Any]]:
    """Yield the record of each line of text or JSON."""
    for place, raw in lines:
        if not raw.strip():
            continue
        try:
            row = {"text": decoded(raw).strip()} if form == "text" else dict(json_row(raw))
            _check_text(row)
        except DataError as error:
            advice = f"{error.detail} Or use --format text." if form == "jsonl" else error.detail
            raise DataError(error.field, error.problem, advice, place) from error.__cause__
        if row["text"] or form == "jsonl":  # a line of unusual blanks is left out, too
            yield row


def _table(lines: Iterable[Line], first: Line) -> Iterator[dict[str, Any]]:
    """Yield the record of each row below a header; a field in quotes may hold line ends."""
    place = ""

    def texts() -> Iterator[str]:
        nonlocal place
        for at, raw in chain([first], lines):
            place = place or at  # of a row that goes over several lines, the first
            try:
                yield decoded(raw)
            except DataError as error:
                raise error.at(at) from error.__cause__

    header: list[str] = []
    rows = csv.reader(texts(), delimiter=_separator(first[1].decode(errors="replace")), strict=True)
    with _long_fields():
        while True:
            place = ""
            try:
                fields = next(rows, None)
                if fields is None:
                    return
                if not header:
                    header = _checked_header(fields)
                elif fields:  # not a blank line
                    yield _record(header, fields)
            except csv.Error as error:
                raise DataError("line", "not CSV", f"{error}; mend its quotes, or use --format text.", place) from error
            except DataError as error:
                raise (error if error.place else error.at(place)) from error.__cause__


def _checked_header(fields: list[str]) -> list[str]:
    header = distinct_names([name.strip() for name in fields])
    if "text" not in header:
        advice = f"got {', '.join(map(repr, header)):.200}; rename one of them, or use --format text or jsonl."
        raise DataError("header", "no column 'text'", advice)
    return header


def _record(header: list[str], fields: list[str]) -> dict[str, Any]:
    if len(fields) != len(header):
        advice = f"got {len(fields)} fields, and the header has {len(header)}; put a field with a separator in quotes."
        raise DataError("line", "lengths differ", advice)
    record = dict(zip(header, fields, strict=True))
    _check_text(record)
    return record


def _check_text(record: dict[str, Any]) -> None:
    if record.get("text") != "":  # an empty text keeps its row
        text_field(record, "text")


def _separator(header: str) -> str:
    """Find the character that separates columns: the one that makes a column 'text', or else the most frequent."""
    return max(SEPARATORS, key=lambda mark: ("text" in _stripped(header.split(mark)), header.count(mark)))


def _stripped(names: list[str]) -> list[str]:
    return [name.strip(' \r\n"') for name in names]


@contextmanager
def _long_fields() -> Iterator[None]:
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
