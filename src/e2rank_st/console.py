"""Output for people and programs: tables, messages, and one line for an error.

Rows become a table on a terminal, and tab-separated lines in a pipe.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = [
    "Column",
    "log_to_stderr",
    "markdown_table",
    "one_line",
    "progress_wanted",
    "reported_errors",
    "scrubbed",
    "show",
]

logger = logging.getLogger(__name__)

# Tabs and line ends would break a row. Escape sequences in a foreign document could control the terminal.
CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
BAR = "\\|"  # an escaped bar inside a cell of a Markdown table

TOKEN = re.compile(r"hf_\w{6,}")
# The last part of an absolute path is enough. The slashes of a URL follow a colon or a letter.
PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[/\\](?:[^/\\\s'\":,]+[/\\])+([^/\\\s'\":,]*)")


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
    cells = [
        [CONTROL.sub(" ", f"{value:{column.form}}").strip() for column, value in zip(columns, row, strict=True)]
        for row in rows
    ]
    if not sys.stdout.isatty():
        sys.stdout.write(f"# {CONTROL.sub(' ', title)}\n" if title else "")
        sys.stdout.writelines("\t".join(row) + "\n" for row in cells)
        return
    # Text, not str: brackets in a document are not markup.
    heading = Text(title, style="bold") if title else None
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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], labels: int | None = None) -> str:
    """Write a table in Markdown.

    Args:
        header: Names of the columns.
        rows: The cells.
        labels: Number of text columns; the rest are numbers, flush right. By default, all are text.
    """
    labels = len(header) if labels is None else labels
    rule = ["---"] * labels + ["---:"] * (len(header) - labels)
    lines = [f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" for row in (header, *rows)]
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

    Args:
        program: The command's name, at the start of the line.
        *kinds: Errors to report besides ValueError, OSError and ImportError.

    Raises:
        SystemExit: Such an error occurred; the status is 1.
    """
    caught: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, *kinds)
    try:
        yield
        sys.stdout.flush()  # here, because a closed pipe (``| head``) is still handled
    except BrokenPipeError:
        raise
    except caught as error:
        logger.debug("the error in full", exc_info=True)
        sys.stderr.write(f"{program}: error: {one_line(error)}\n")
        raise SystemExit(1) from error


def scrubbed(text: str) -> str:
    """Return a message without access tokens, and with only the last part of each absolute path."""
    return PATH.sub(r"…/\1", TOKEN.sub("hf_***", text))


def one_line(error: Exception) -> str:
    """Return an error's message on one line; for an error of a file, the file and the system's message."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename2 or error.filename}: {error.strerror}"  # the second is the target of a rename
    return TOKEN.sub("hf_***", " ".join(str(error).split()))


class _StderrHandler(logging.Handler):
    """Looks up standard error for each message, because a spinner replaces it for some time."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.levelname.lower()}: {self.format(record)}\n")
