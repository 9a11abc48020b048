"""Results of run_reranking.py → the README's table: a task a row, the untrained base beside the trained model.

    python eval/summary.py eval/results
    python eval/summary.py eval/results --readme README.md

It is printed, and with --readme also put between the marks in that file. Differences are those of trained listwise, in
points, with the p-value of the paired randomisation test over queries.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from metrics import compare
from records import Row, check_complete, marked, read_rows
from report import Table, markdown, p_value

from e2rank_st.atomic import replacing

__all__ = ["put_into", "summary"]

SYSTEMS: Mapping[str, str] = {
    "first_stage": "first stage",
    "baseline_embedding": "base",
    "baseline_rocchio": "base + Rocchio",
    "baseline_listwise": "base, listwise",
    "embedding": "trained embedding",
    "listwise": "trained, listwise",
}
TESTED, RIVALS = "listwise", ("baseline_embedding", "baseline_rocchio")
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def summary(rows: Sequence[Row]) -> str:
    """Make the table, in Markdown.

    Args:
        rows: Those of other scripts are passed over.

    Raises:
        ValueError: A system is missing, on all tasks or on one, or is one of several models.
    """
    part = [row for row in rows if row.benchmark == "reranking"]
    for name in SYSTEMS:
        models = {row.model for row in part if row.system == name}
        if len(models) != 1:
            found = f"results of several models: {', '.join(sorted(models))}" if models else "no results"
            raise ValueError(f"For {name} there are {found}; run run_reranking.py with one --model and one --baseline.")
    check_complete(part)
    lines = [
        _line([row for row in part if row.column == column]) for column in dict.fromkeys(row.column for row in part)
    ]
    header = ("task", "queries", *SYSTEMS.values(), *(f"over {SYSTEMS[rival]}, p" for rival in RIVALS))
    return markdown(Table("summary", "", header, tuple(lines))).partition("\n\n")[2]


def _line(rows: Sequence[Row]) -> tuple[str, ...]:
    """A task's cells."""
    of = {row.system: row for row in rows}
    scores = [f"{100 * of[name].scores['main']:.2f}" for name in SYSTEMS]
    found = [compare(rival, of[TESTED].per_query, of[rival].per_query) for rival in RIVALS]
    tests = [f"{100 * test.difference:+.2f}, {p_value(test.p)}" for test in found]
    return (marked(*rows), str(rows[0].queries), *scores, *tests)


def put_into(path: Path, table: str) -> None:
    """Replace what is between the marks of a file, whole or not at all.

    Raises:
        ValueError: The marks are not there, each once.
        OSError: The file cannot be read or written.
    """
    text, number = MARKS.subn(lambda found: found[1] + table + found[2], path.read_text(encoding="utf-8"))
    if number != 1:
        raise ValueError(f"{path} has {number} places from <!-- results --> to <!-- /results -->; give it one.")
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table.

    Returns:
        The exit status: 1 if something is missing or wrong.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", metavar="PATH", help="result files, or folders of them")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="put the table between the marks in this file")
    arguments = parser.parse_args(argv)
    try:
        table = summary(read_rows(arguments.results))
        if arguments.readme:
            put_into(arguments.readme, table)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
