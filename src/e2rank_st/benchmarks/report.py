"""Result files → tables (Markdown, LaTeX, CSV) and figures; no number in them is typed by hand.

Columns of local data carry a †, those of some of the queries a ‡: neither is an official result.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from e2rank_st.benchmarks.figures import FIGURES, draw
from e2rank_st.benchmarks.results import LOCAL, PARTIAL, Row, check_complete, marked, read_rows, titled
from e2rank_st.evaluation.metrics import DIGITS
from e2rank_st.storage import replacing

NOTES = {
    LOCAL: "on local copies of the data, no official result",
    PARTIAL: "on some of the queries only",
}
LEAST_P = 1e-4  # below that, a table says no more
LEAST_QUERIES = 5  # for a 95th percentile
EXAMPLES = """
examples:
  python eval/report.py results --output-dir report
  python eval/report.py results --output-dir report --tasks dl19 dl20 covid --figure-format pdf
  python eval/report.py results-by-k --output-dir report --only prompt-documents
"""


@dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
        name: Name of its files.
        title: What it shows.
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
    def notes(self) -> list[str]:
        """What the marks in it mean."""
        cells = " ".join((*self.header, *(row[0] for row in self.rows)))
        return [f"{mark} {text}" for mark, text in NOTES.items() if mark in cells]


def markdown(table: Table) -> str:
    """The table in Markdown, with its title and notes."""
    rule = ["---"] * table.labels + ["---:"] * (len(table.header) - table.labels)
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (table.header, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, f"|{'|'.join(rule)}|")
    notes = ["", "; ".join(table.notes) + "."] if table.notes else []
    return "\n".join([f"**{table.title}**", "", *lines, *notes]) + "\n"


def latex(table: Table) -> str:
    """The table in LaTeX; it needs the package booktabs."""
    columns = "l" * table.labels + "r" * (len(table.header) - table.labels)
    lines = [" & ".join(map(_tex, row)) + r" \\" for row in (table.header, *table.rows)]
    lines.insert(1, r"\midrule")
    body = "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"])
    notes = "".join(f"\n\n{_tex(note)}." for note in table.notes)
    return f"% {table.title}\n{body}{notes}\n"


def as_csv(table: Table) -> str:
    """The table as comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((table.header, *table.rows))
    return text.getvalue()


FORMATS: Mapping[str, Callable[[Table], str]] = {"md": markdown, "tex": latex, "csv": as_csv}
TEX = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    LOCAL: r"\dag{}",
    PARTIAL: r"\ddag{}",
    "<": "$<$",
    "−": "$-$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text)


def main_table(rows: Sequence[Row], benchmark: str) -> Table:
    """The main score of each system on each task, and the mean over tasks, in points.

    A cell is empty where a mode of MTEB makes no difference; then so is the mean, which would be one over other tasks.
    """
    columns: dict[str, list[Row]] = {}
    for row in rows:
        columns.setdefault(row.column, []).append(row)
    values = {(row.model, row.system, row.column): row.scores["main"] for row in rows}
    lines = []
    for model, system in dict.fromkeys((row.model, row.system) for row in rows):
        scores = [values.get((model, system, column)) for column in columns]
        known = [score for score in scores if score is not None]
        if len(columns) > 1:
            scores.append(fmean(known) if len(known) == len(columns) else None)
        lines.append((system, model, *("" if score is None else f"{100 * score:.2f}" for score in scores)))
    headings = [marked(*part) for part in columns.values()] + (["mean"] if len(columns) > 1 else [])
    title = f"{'nDCG@10' if benchmark == 'reranking' else 'Main score'}, {benchmark}"
    return Table(f"{benchmark}-scores", title, ("system", "model", *headings), tuple(lines), labels=2)


def metrics_table(rows: Sequence[Row], benchmark: str) -> Table:
    """All metrics that every row has, in points; no lines where tasks of several kinds have none in common."""
    names = [name for name in rows[0].scores if name != "main" and all(name in row.scores for row in rows)]
    lines = tuple(
        (marked(row), row.system, row.model, *(f"{100 * row.scores[name]:.2f}" for name in names))
        for row in rows
        if names
    )
    return Table(f"{benchmark}-metrics", f"All metrics, {benchmark}", ("task", "system", "model", *names), lines, 3)


def comparison_table(rows: Sequence[Row], benchmark: str) -> Table:
    """How systems differ, query by query, in points."""
    lines = []
    for row in rows:
        if (found := row.comparison) is not None:
            low, high = (f"{100 * bound:+.2f}" for bound in found["interval"])
            counts = [str(found[name]) for name in ("wins", "ties", "losses")]
            difference = f"{100 * found['difference']:+.2f}"
            lines.append(
                (marked(row), titled(row, rows), found["against"], difference, low, high, p_value(found["p"]), *counts)
            )
    header = ("task", "system", "against", "difference", "95 % from", "to", "p", "wins", "ties", "losses")
    title = f"Differences of nDCG@10, {benchmark}: bootstrap interval, paired randomisation test"
    return Table(f"{benchmark}-comparisons", title, header, tuple(lines), labels=3)


def p_value(p: float) -> str:
    """A p-value, or below which one it is; the same for one that was stored and one that is computed again."""
    p = round(p, DIGITS)
    return f"{p:.4f}" if p >= LEAST_P else f"<{LEAST_P:.4f}"


def latency_table(rows: Sequence[Row], benchmark: str) -> Table:
    """Milliseconds a query, with stored document vectors and without, and tokens."""
    lines = []
    for row in rows:
        spreads = [row.latency.get(kind) or {} for kind in ("stored", "fresh")]
        if any(spreads):
            times = [cell for spread in spreads for cell in _spread(spread)]
            tokens = "" if row.tokens is None else f"{row.tokens:.0f}"
            lines.append((marked(row), row.system, row.model, *times, tokens))
    header = ("task", "system", "model", "stored", "p95", "no store", "p95", "tokens")
    title = f"Milliseconds to rerank the candidates of a query, median and 95th percentile, {benchmark}"
    return Table(f"{benchmark}-latency", title, header, tuple(lines), labels=3)


def _spread(spread: Mapping[str, float]) -> tuple[str, str]:
    """Median and 95th percentile, which so few values as three have not."""
    if not spread:
        return ("", "")
    return (f"{spread['median']:.1f}", f"{spread['p95']:.1f}" if spread["queries"] >= LEAST_QUERIES else "")


TABLES: Mapping[str, Callable[[Sequence[Row], str], Table]] = {
    "scores": main_table,
    "metrics": metrics_table,
    "comparisons": comparison_table,
    "latency": latency_table,
}
PARTS = tuple(dict.fromkeys((*TABLES, *FIGURES)))  # a table and a figure may have the same name


def make_tables(rows: Sequence[Row], only: Sequence[str] = PARTS) -> list[Table]:
    """Those of the tables that there are rows for."""
    makers = [make for name, make in TABLES.items() if name in only]
    tables = []
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        part = [row for row in rows if row.benchmark == benchmark]
        tables += [table for make in makers if (table := make(part, benchmark)).rows]
    return tables


def write_report(
    rows: Sequence[Row], folder: Path, figure_formats: Sequence[str], only: Sequence[str] = PARTS
) -> list[Path]:
    """Write tables and figures, each whole or not at all.

    Args:
        rows: What they show.
        folder: Where they go.
        figure_formats: Endings of the figures' files.
        only: Names of those to make, of :data:`PARTS`.

    Returns:
        What was written.

    Raises:
        ImportError: matplotlib is missing.
        OSError: A file cannot be written.
    """
    written = []
    for table in make_tables(rows, only):
        for ending, form in FORMATS.items():
            written.append(folder / f"{table.name}.{ending}")
            with replacing(written[-1]) as fresh:
                fresh.write_text(form(table), encoding="utf-8")
    for name, figure in draw(rows, only).items():
        for ending in figure_formats:
            written.append(folder / f"{name}.{ending}")
            with replacing(written[-1]) as fresh:
                figure.savefig(fresh, format=ending, dpi=150)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Make the report.

    Returns:
        The exit status: 1 if something is missing or wrong.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", metavar="PATH", help="result files, or folders of them")
    parser.add_argument("--output-dir", type=Path, default=Path("report"), metavar="DIR", help="(default: report)")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help="tasks that have to be there")
    parser.add_argument(
        "--figure-format", nargs="+", choices=("png", "pdf", "svg"), default=["png"], help="(default: png)"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="tables and figures (default: all)")
    arguments = parser.parse_args(argv)
    try:
        rows = read_rows(arguments.results)
        check_complete(rows, arguments.tasks)
        written = write_report(rows, arguments.output_dir, arguments.figure_format, arguments.only)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    drawn = {path.stem for path in written if path.suffix[1:] in arguments.figure_format}
    wanted = [name for name in FIGURES if name in arguments.only]
    left_out = [name for name in wanted if not any(stem.endswith(f"-{name}") for stem in drawn)]
    if left_out:
        print(f"no data for the figures {', '.join(left_out)}", file=sys.stderr)
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
