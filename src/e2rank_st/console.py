"""Output for people and programs: tables, messages, and one line for an error.

Rows become a table on a terminal, and tab-separated lines in a pipe. Foreign text in them, and in messages, is made
printable: it can neither control a terminal nor change the order of what is read there.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, time
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = [
    "Column",
    "json_line",
    "log_to_stderr",
    "markdown_table",
    "one_line",
    "printable",
    "progress_wanted",
    "reported_errors",
    "scrubbed",
    "show",
]

logger = logging.getLogger(__name__)

BAR = "\\|"  # an escaped bar inside a cell of a Markdown table

FORMATTER = logging.Formatter()
TOKEN = re.compile(r"hf_\w{6,}")
# The last part of an absolute path is enough. The slashes of a URL follow a colon or a letter.
PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[/\\](?:[^/\\\s'\":,]+[/\\])+([^/\\\s'\":,]*)")


class _Printable(dict[int, str]):
    """A table for ``str.translate``, filled as characters appear."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character.isspace() or category == "Cc":  # tabs, line ends, escape sequences
            shown = " "
        elif category == "Cf" or character in FILLERS:  # zero width, or they turn the direction of reading
            shown = ""
        else:
            shown = character if character.isprintable() else "\ufffd"
        return self.setdefault(code, shown)


FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # count as letters, and show nothing
PRINTABLE = _Printable()


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        form: Format of its values, for example ``.4f``. A column with a form holds numbers and is flush right.
        share: Its part of the free width. A column with the share 0 is as wide as its widest cell.
        style: Its colour on a terminal.
    """

    name: str
    form: str = ""
    share: int = 0
    style: str = ""


def show(columns: tuple[Column, ...], rows: Iterable[tuple[Any, ...]], title: str = "") -> None:
    """Write rows to standard output.

    Args:
        columns: The columns, at least one with a share.
        rows: A value for each column.
        title: Line above the rows. In a pipe, it starts with ``#``.
    """
    cells = [[printable(f"{value:{column.form}}") for column, value in zip(columns, row, strict=True)] for row in rows]
    if not sys.stdout.isatty():
        sys.stdout.write(f"# {printable(title)}\n" if title else "")
        sys.stdout.writelines("\t".join(row) + "\n" for row in cells)
        return
    # Text, not str: brackets in a document are not markup.
    heading = Text(printable(title), style="bold") if title else None
    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=heading, title_justify="left", expand=True
    )
    widths = [max(map(len, column)) for column in zip([column.name for column in columns], *cells, strict=True)]
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            column.name,
            justify="right" if column.form else "left",
            style=column.style,
            no_wrap=True,
            overflow="ellipsis",
            ratio=column.share or None,
            min_width=None if column.share else width,
        )
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)


def json_line(fields: dict[str, Any]) -> str:
    """Write a line of JSON; a date becomes text as ISO 8601 has it.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(fields, allow_nan=False, default=_iso) + "\n"


def _iso(value: Any) -> str:
    return str(value.isoformat() if isinstance(value, (date, time)) else value)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], labels: int | None = None) -> str:
    """Write a table in Markdown.

    Args:
        header: Names of the columns.
        rows: The cells.
        labels: Number of text columns; the rest are numbers, flush right. By default, all are text.
    """
    labels = len(header) if labels is None else labels
    rule = ["---"] * labels + ["---:"] * (len(header) - labels)
    lines = [f"| {' | '.join(printable(cell).replace('|', BAR) for cell in row)} |" for row in (header, *rows)]
    lines.insert(1, f"|{'|'.join(rule)}|")
    return "\n".join(lines)


def progress_wanted(given: bool | None, log: logging.Logger) -> bool:
    """Decide whether to show a progress bar: as given, or else if the logger's level is INFO or lower."""
    return log.getEffectiveLevel() <= logging.INFO if given is None else given


def log_to_stderr(verbosity: int) -> None:
    """Show the package's warnings on standard error. Level 1 adds progress, and level 2 adds tracebacks of errors."""
    package = logging.getLogger("e2rank_st")
    package.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)])
    if not package.handlers:
        package.addHandler(_StderrHandler())


@contextmanager
def reported_errors(program: str, *kinds: type[Exception]) -> Iterator[None]:
    """End a command after a user's mistake, with one line on standard error instead of a traceback.

    It ends quietly if the user interrupts it, or if the reader of its output goes away (``| head``). A closed standard
    error is silent, and writing to a closed standard output is an error.

    Args:
        program: The command's name, at the start of the line.
        *kinds: Errors to report besides ValueError, OSError and ImportError.

    Raises:
        SystemExit: Such an error occurred, with the status 1, or the user interrupted, with 130.
    """
    caught: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, *kinds)
    if sys.stderr is None:
        sys.stderr = _nowhere()
    if sys.stdout is None:
        sys.stdout = _Closed()
    try:
        try:
            yield
        except SystemExit:
            _flush()
            raise
        _flush()
    except KeyboardInterrupt as error:
        raise SystemExit(130) from error
    except BrokenPipeError as error:
        sys.stdout = _nowhere()
        raise SystemExit(1) from error
    except caught as error:
        logger.debug("the error in full", exc_info=True)
        sys.stderr.write(f"{program}: error: {one_line(error)}\n")
        raise SystemExit(1) from error


class _Closed(io.TextIOBase):
    """Stands for a standard output that was closed before the command began."""

    def __init__(self) -> None:
        self._place = _nowhere()  # takes the descriptor, or the next file would

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "is closed", "<stdout>")


def _nowhere() -> TextIO:
    """Open the null device: as standard output, or the interpreter would try to write again, and tell of it."""
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123


def _flush() -> None:
    """Write out what is left, while an error can still be told."""
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = _nowhere()
        raise OSError(error.errno, error.strerror, "<stdout>") from error


def printable(text: str) -> str:
    """Return a text on one line, without characters that are invisible, unknown or control a terminal."""
    return " ".join(text.translate(PRINTABLE).split())


def scrubbed(text: str) -> str:
    """Return a message without access tokens, and with only the last part of each absolute path."""
    return PATH.sub(r"…/\1", TOKEN.sub("hf_***", text))


def one_line(error: Exception) -> str:
    """Return an error's message on one line; for an error of a file, the file and the system's message."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        place = error.filename2 or error.filename  # the second is the target of a rename
        message = f"{place}: {error.strerror}" if place else error.strerror
    return TOKEN.sub("hf_***", printable(message))


class _StderrHandler(logging.Handler):
    """Looks up standard error for each message, because a spinner replaces it for some time."""

    def emit(self, record: logging.LogRecord) -> None:
        lines = [f"{record.levelname.lower()}: {printable(record.getMessage())}"]
        if record.exc_info:
            lines += [line.translate(PRINTABLE) for line in FORMATTER.formatException(record.exc_info).splitlines()]
        sys.stderr.write("\n".join(lines) + "\n")
