"""A text file or JSON lines → documents, with the place of anything that is wrong.

Blank lines are left out, so the documents of a file are counted the same way wherever it is read: the row of a vector
made from a file is the ``corpus_id`` of the document made from it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

__all__ = ["Format", "check_text", "read_documents"]


# How documents are written: a document a line, or a JSON object a line with the document in its field "text". "auto"
# takes JSON lines where the first document starts with a brace.
Format: TypeAlias = Literal["auto", "text", "jsonl"]

SURROGATE = re.compile("[\ud800-\udfff]")


def read_documents(source: str, form: Format = "auto") -> list[dict[str, Any]]:
    """Read the documents of a file.

    Args:
        source: Path of the file, or ``-`` for standard input.
        form: How they are written.

    Returns:
        A record a document, with ``text`` and whatever other fields its JSON line has.

    Raises:
        OSError: The file cannot be read.
        ValueError: There is no document, or a line is no valid one; the message names file and line.
    """
    name = "<stdin>" if source == "-" else source
    content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    lines = list(_lines(content, name))
    if not lines:
        raise ValueError(f"{name} holds no documents; give a document a line, or JSON lines with a field 'text'.")
    if form == "auto":
        form = "jsonl" if lines[0][1].startswith("{") else "text"
    if form == "text":
        return [{"text": line} for _, line in lines]
    return [_record(line, f"{name}:{number}") for number, line in lines]


def check_text(text: str, place: str) -> None:
    """Refuse a text that no tokenizer takes: one with half a surrogate pair.

    JSON can spell one, and Python makes them of command line arguments that are not UTF-8.

    Args:
        text: The text.
        place: Where it comes from, for the message.

    Raises:
        ValueError: It holds half a surrogate pair.
    """
    if SURROGATE.search(text):
        raise ValueError(f"{place}: got {text!a:.60}, which is no valid Unicode; give it in UTF-8.")


def _lines(content: bytes, name: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank, without a byte order mark or surrounding blanks."""
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}:{number}: not UTF-8 ({error.reason}); convert the file to UTF-8.") from error
        if line:
            yield number, line


def _record(line: str, place: str) -> dict[str, Any]:
    """Parse one JSON line."""
    try:
        record: dict[str, Any] = json.loads(line)  # or whatever else a line may hold, which is checked below
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{place}: no JSON ({error.msg} at column {error.colno}); write one object a line, or use --format text."
        ) from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{place}: got {line:.60}; write an object whose field 'text' is a string.")
    check_text(text, place)
    return record
