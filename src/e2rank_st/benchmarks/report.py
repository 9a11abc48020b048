"""Results → tables and figures; no number in them is typed by hand.

Columns of local data carry a †, those of some of the queries a ‡: neither is an official result.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from e2rank_st.benchmarks.figures import FIGURES, draw, save
from e2rank_st.benchmarks.results import LOCAL, PARTIAL, Entry, column_with_marks, titled
from e2rank_st.console import markdown_table
from e2rank_st.evaluation.metrics import DIGITS
from e2rank_st.storage import write_text

__all__ = ["PARTS", "Table", "make_tables", "p_value", "write_figures", "write_tables"]

NOTES = {LOCAL: "on local copies of the data, not an official result", PARTIAL: "on some of the queries only"}
LEAST_P = 1e-4  # below that, a table says no more
LEAST_QUERIES = 5  # for a 95th percentile


@dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
        name: Name of its files.
        title: A sentence above it; empty for none.
        header: Names of the columns; the first ``labels`` of them are text, the others numbers.
        rows: The cells.
        labels: How many columns are text.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1

    @property
    def markdown(self) -> str:
        """The table in Markdown, with its title and the meanings of the marks in it."""
        cells = " ".join((*self.header, *(row[0] for row in self.rows)))
        notes = [f"{mark} {text}" for mark, text in NOTES.items() if mark in cells]
        parts = [f"**{self.title}**" if self.title else "", markdown_table(self.header, self.rows, self.labels)]
        return "\n\n".join(filter(None, [*parts, "; ".join(notes) + "." if notes else ""])) + "\n"

    @property
    def csv(self) -> str:
        """The table as comma-separated values."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows((self.header, *self.rows))
        return text.getvalue()


def main_table(entries: Sequence[Entry], benchmark: str) -> Table:
    """The main score of each system on each task, and the mean over tasks, in points.

    A cell is empty where there is no result, or a mode of MTEB makes no difference. The mean is then empty, too: it
    would be over different tasks.
    """
    columns: dict[str, list[Entry]] = {}
    for entry in entries:
        columns.setdefault(entry.column, []).append(entry)
    values = {(entry.model, entry.name, entry.column): entry.main for entry in entries}
    lines = []
    for model, name in dict.fromkeys((entry.model, entry.name) for entry in entries):
        scores = [values.get((model, name, column)) for column in columns]
        known = [score for score in scores if score is not None]
        if len(columns) > 1:
            scores.append(fmean(known) if len(known) == len(columns) else None)
        lines.append((name, model, *("" if score is None else f"{100 * score:.2f}" for score in scores)))
    headings = [column_with_marks(*part) for part in columns.values()] + (["mean"] if len(columns) > 1 else [])
    title = f"{'nDCG@10' if benchmark == 'reranking' else 'Main score'}, {benchmark}"
    return Table(f"{benchmark}-scores", title, ("system", "model", *headings), tuple(lines), labels=2)


def metrics_table(entries: Sequence[Entry], benchmark: str) -> Table:
    """All metrics that every entry has, in points; no lines where tasks of several kinds have none in common."""
    names = [name for name in entries[0].system.scores if all(name in entry.system.scores for entry in entries)]
    lines = tuple(
        (
            column_with_marks(entry),
            entry.name,
            entry.model,
            *(f"{100 * entry.system.scores[name]:.2f}" for name in names),
        )
        for entry in entries
        if names
    )
    return Table(f"{benchmark}-metrics", f"All metrics, {benchmark}", ("task", "system", "model", *names), lines, 3)


def comparison_table(entries: Sequence[Entry], benchmark: str) -> Table:
    """How systems differ, query by query, in points."""
    lines = []
    for entry in entries:
        if (found := entry.system.comparison) is not None:
            low, high = (f"{100 * bound:+.2f}" for bound in found["interval"])
            counts = [str(found[name]) for name in ("wins", "ties", "losses")]
            numbers = (f"{100 * found['difference']:+.2f}", low, high, p_value(found["p"]), *counts)
            lines.append((column_with_marks(entry), titled(entry, entries), found["against"], *numbers))
    header = ("task", "system", "against", "difference", "95 % from", "to", "p", "wins", "ties", "losses")
    title = f"Differences of nDCG@10, {benchmark}: bootstrap interval, paired randomisation test"
    return Table(f"{benchmark}-comparisons", title, header, tuple(lines), labels=3)


def p_value(p: float) -> str:
    """A p-value, or a bound that it is below; the same for one that was stored and one that is computed again."""
    p = round(p, DIGITS)
    return f"{p:.4f}" if p >= LEAST_P else f"<{LEAST_P:.4f}"


def latency_table(entries: Sequence[Entry], benchmark: str) -> Table:
    """Milliseconds a query, with stored document vectors and without, and tokens."""
    lines = []
    for entry in entries:
        spreads = [entry.system.latency.get(kind) or {} for kind in ("stored", "fresh")]
        if any(spreads):
            times = [cell for spread in spreads for cell in _spread(spread)]
            tokens = f"{entry.system.tokens['median']:.0f}" if entry.system.tokens else ""
            lines.append((column_with_marks(entry), entry.name, entry.model, *times, tokens))
    header = ("task", "system", "model", "stored", "p95", "no store", "p95", "tokens")
    title = f"Milliseconds to rerank the candidates of a query, median and 95th percentile, {benchmark}"
    return Table(f"{benchmark}-latency", title, header, tuple(lines), labels=3)


def _spread(spread: Mapping[str, float]) -> tuple[str, str]:
    """Median and 95th percentile; a handful of values does not have the second."""
    if not spread:
        return ("", "")
    return (f"{spread['median']:.1f}", f"{spread['p95']:.1f}" if spread["queries"] >= LEAST_QUERIES else "")


TABLES: Mapping[str, Callable[[Sequence[Entry], str], Table]] = {
    "scores": main_table,
    "metrics": metrics_table,
    "comparisons": comparison_table,
    "latency": latency_table,
}
PARTS = tuple(dict.fromkeys((*TABLES, *FIGURES)))  # a table and a figure may have the same name


def make_tables(entries: Sequence[Entry], only: Sequence[str] = PARTS) -> list[Table]:
    """The tables that there are entries for; names in ``only`` that are those of figures are passed over."""
    makers = [make for name, make in TABLES.items() if name in only]
    tables = []
    for benchmark in dict.fromkeys(entry.result.benchmark for entry in entries):
        part = [entry for entry in entries if entry.result.benchmark == benchmark]
        tables += [table for make in makers if (table := make(part, benchmark)).rows]
    return tables


def write_tables(tables: Iterable[Table], folder: Path) -> list[Path]:
    """Write each table as Markdown and as comma-separated values, each file whole or not at all.

    Raises:
        OSError: A file cannot be written.
    """
    written = []
    for table in tables:
        for ending, text in (("md", table.markdown), ("csv", table.csv)):
            written.append(folder / f"{table.name}.{ending}")
            write_text(written[-1], text)
    return written


def write_figures(
    entries: Sequence[Entry], folder: Path, formats: Sequence[str] = ("png",), only: Sequence[str] = PARTS
) -> list[Path]:
    """Write the figures that there is data for in each format (``png``, ``pdf``, ``svg``), whole or not at all.

    Raises:
        ImportError: matplotlib is missing.
        OSError: A file cannot be written.
    """
    written = []
    for name, figure in draw(entries, only).items():
        for ending in formats:
            written.append(folder / f"{name}.{ending}")
            save(figure, written[-1])
    return written
