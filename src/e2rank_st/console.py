"""Rows → a table for people on a terminal, tab-separated lines for programs behind a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Column", "show"]

# Tabs and line ends would break a row, escape sequences of a stranger's document could take over the terminal.
CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        form: How a value is formatted, for example ``.4f``; a column with a form is a number's and flush right.
        share: Its part of the width that the other columns leave; 0 for a column that is as wide as its widest cell.
        style: Its colour on a terminal.
    """

    name: str
    form: str = ""
    share: int = 0
    style: str = ""


def show(columns: tuple[Column, ...], rows: Iterable[tuple[Any, ...]], title: str = "") -> None:
    """Write rows to standard output.

    Args:
        columns: The columns, at least one of them with a share.
        rows: A value for each column.
        title: Line above the rows, behind a ``#`` where they are no table.
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
