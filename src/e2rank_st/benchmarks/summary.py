"""Results → the README's tables: a task a row, the untrained base beside the trained model.

    python eval/summary.py eval/results
    python eval/summary.py eval/results --readme README.md

They are printed, and with --readme also put between the marks in that file. The first table is of run_reranking.py. The
second, if run_mteb.py ran both models, is of MTEB's tasks that search. Differences are those of trained listwise, in
points, with the p-value of the paired randomisation test over queries.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from e2rank_st.benchmarks.report import Table, markdown, p_value
from e2rank_st.benchmarks.results import MTEB_REFERENCE, Row, check_complete, marked, read_rows
from e2rank_st.evaluation.metrics import mean
from e2rank_st.evaluation.significance import compare
from e2rank_st.storage import replacing

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
MTEB_TESTED = "two-stage"
HEADER = ("task", "queries", *SYSTEMS.values(), *(f"over {SYSTEMS[rival]}, p" for rival in RIVALS))
MTEB_HEADER = ("MTEB task", "queries", "base", "trained embedding", "trained, two stages", "over base, p")
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def summary(rows: Sequence[Row]) -> str:
    """Make the tables, in Markdown.

    Args:
        rows: Of both scripts.

    Raises:
        ValueError: A system is missing, on all tasks or on one, or is one of several models; or so is a mode of MTEB.
    """
    part = [row for row in rows if row.benchmark == "reranking"]
    models = {name: _only_model(name, part) for name in SYSTEMS}
    check_complete(part)
    tasks = [[row for row in part if row.column == column] for column in dict.fromkeys(row.column for row in part)]
    tables = [
        (HEADER, [_line(task) for task in tasks]),
        (MTEB_HEADER, _mteb_lines(rows, models[TESTED], models[RIVALS[0]])),
    ]
    return "\n".join(_bare(header, lines) for header, lines in tables if lines)


def _only_model(system: str, rows: Sequence[Row]) -> str:
    models = {row.model for row in rows if row.system == system}
    if len(models) != 1:
        found = f"results of several models: {', '.join(sorted(models))}" if models else "no results"
        raise ValueError(f"For {system} there are {found}; run run_reranking.py with one --model and one --baseline.")
    return models.pop()


def _bare(header: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown, without the title that reports give it."""
    return markdown(Table("summary", "", header, tuple(lines))).partition("\n\n")[2]


def _line(rows: Sequence[Row]) -> tuple[str, ...]:
    """A task's cells."""
    of = {row.system: row for row in rows}
    return _cells([of[name] for name in SYSTEMS], of[TESTED], [of[name] for name in RIVALS])


def _mteb_lines(rows: Sequence[Row], model: str, baseline: str) -> list[tuple[str, ...]]:
    """The cells of each of MTEB's tasks that has scores by query, of both models."""
    of = {(row.task, row.model, row.system): row for row in rows if row.benchmark == "mteb" and row.per_query}
    lines = []
    for task in dict.fromkeys(task for task, _, _ in of):
        if not {(task, model), (task, baseline)} <= {key[:2] for key in of}:
            continue
        keys = [(task, baseline, MTEB_REFERENCE), (task, model, MTEB_REFERENCE), (task, model, MTEB_TESTED)]
        if gaps := [f"{mode} of {name}" for _, name, mode in (key for key in keys if key not in of)]:
            raise ValueError(f"No results for {', '.join(gaps)} on {task}; run run_mteb.py in both modes.")
        shown = [of[key] for key in keys]
        lines.append(_cells(shown, shown[-1], shown[:1]))
    return lines


def _cells(shown: Sequence[Row], tested: Row, rivals: Sequence[Row]) -> tuple[str, ...]:
    """Task, number of queries, scores, and what the tested system gains over each rival."""
    scores = [f"{100 * mean(row.per_query):.2f}" for row in shown]
    found = [compare(rival.system, tested.per_query, rival.per_query) for rival in rivals]
    gains = [f"{100 * test.difference:+.2f}, {p_value(test.p)}" for test in found]
    return (marked(*shown), str(shown[0].queries), *scores, *gains)


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
    """Print the tables.

    Returns:
        The exit status: 1 if something is missing or wrong.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", metavar="PATH", help="result files, or folders of them")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="put them between the marks in this file")
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
