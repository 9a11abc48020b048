"""A text file or JSON lines → documents; an error names file and line.

Blank lines are left out, so every reader counts the documents of a file in the same way. The row of a vector is
therefore the ``corpus_id`` of its document.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias

from e2rank_st.data.files import DataError, decoded, json_row, numbered_lines, text_field

__all__ = ["Format", "read_documents"]

# "text" is one document a line. "jsonl" is one JSON object a line, with the document in its field "text". "auto" takes
# JSON lines if the first document starts with a brace.
Format: TypeAlias = Literal["auto", "text", "jsonl"]


def read_documents(source: str, form: Format = "auto") -> list[dict[str, Any]]:
    """Read the documents of a file, or of standard input if ``source`` is ``-``.

    Returns:
        One record for each document: ``text`` and the further fields of its JSON line.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file holds no document, or a line is not valid. The message names file and line.
    """
    name = "<stdin>" if source == "-" else source
    documents: list[dict[str, Any]] = []
    with nullcontext(sys.stdin.buffer) if source == "-" else Path(source).open("rb") as file:
        for place, raw in numbered_lines(file, name):
            if form == "auto":
                form = "jsonl" if raw.lstrip().startswith(b"{") else "text"
            try:
                row = {"text": decoded(raw).strip()} if form == "text" else dict(json_row(raw))
                if row.get("text") != "":  # an empty text keeps its row
                    text_field(row, "text")
            except DataError as error:
                advice = f"{error.detail} Or use --format text." if form == "jsonl" else error.detail
                raise DataError(error.field, error.problem, advice, place) from error.__cause__
            if row["text"] or form == "jsonl":  # a line of unusual blanks is left out, too
                documents.append(row)
    if not documents:
        raise ValueError(f"{name} holds no documents; give one document a line, or JSON lines with a field 'text'.")
    return documents
