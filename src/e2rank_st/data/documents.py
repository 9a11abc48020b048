"""A text file or JSON lines → documents; an error names file and line.

Blank lines are left out, so every reader counts the documents of a file in the same way. The row of a vector is
therefore the ``corpus_id`` of its document.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

__all__ = ["Format", "check_text", "read_documents"]


# "text" is one document a line. "jsonl" is one JSON object a line, with the document in its field "text". "auto" takes
# JSON lines if the first document starts with a brace.
Format: TypeAlias = Literal["auto", "text", "jsonl"]

SURROGATE = re.compile("[\ud800-\udfff]")


def read_documents(source: str, form: Format = "auto") -> list[dict[str, Any]]:
    """Read the documents of a file.

    Args:
        source: Path of the file, or ``-`` for standard input.
        form: Form of the file.

    Returns:
        One record for each document: ``text`` and the further fields of its JSON line.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file holds no document, or a line is not valid. The message names file and line.
    """
    name = "<stdin>" if source == "-" else source
    content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    lines = list(_lines(content, name))
    if not lines:
        raise ValueError(f"{name} holds no documents; give one document a line, or JSON lines with a field 'text'.")
    if form == "auto":
        form = "jsonl" if lines[0][1].startswith("{") else "text"
    if form == "text":
        return [{"text": line} for _, line in lines]
    return [_record(line, f"{name}:{number}") for number, line in lines]


def check_text(text: str, place: str) -> None:
    """Refuse a text with half a surrogate pair, because tokenizers cannot read it.

    JSON can contain half a pair, and Python makes one of a command line argument that is not UTF-8.

    Args:
        text: The text.
        place: Its source, for the message.

    Raises:
        ValueError: The text holds half a surrogate pair.
    """
    if SURROGATE.search(text):
        raise ValueError(f"{place}: got {text!a:.60}, which is not valid Unicode; give it in UTF-8.")


def _lines(content: bytes, name: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank. Byte order mark and surrounding blanks are removed."""
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
        record: dict[str, Any] = json.loads(line)  # the type is checked below
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{place}: not JSON ({error.msg} at column {error.colno}); write one object a line, or use --format text."
        ) from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{place}: got {line:.60}; write an object whose field 'text' is a string.")
    check_text(text, place)
    return record
