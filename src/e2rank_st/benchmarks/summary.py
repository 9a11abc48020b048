"""Results → the tables of README and docs: a task a row, the untrained base beside the trained model.

The tables stand between two marks of a file, ``<!-- results -->`` and ``<!-- /results -->``, so that nobody types them.
Differences are in points, with the p-value of the paired randomisation test over queries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from e2rank_st.benchmarks.report import Table, p_value
from e2rank_st.benchmarks.results import MTEB_REFERENCE, Entry, column_with_marks
from e2rank_st.evaluation.metrics import mean
from e2rank_st.evaluation.significance import compare
from e2rank_st.storage import write_text

__all__ = ["put_into", "short_summary", "summary"]

SYSTEMS: Mapping[str, str] = {
    "first_stage": "first stage",
    "baseline_embedding": "base",
    "baseline_rocchio": "base + Rocchio",
    "baseline_listwise": "base, listwise",
    "embedding": "trained embedding",
    "listwise": "trained, listwise",
}
TESTED, RIVALS = "listwise", ("baseline_embedding", "baseline_rocchio")
HEADER = ("task", "queries", *SYSTEMS.values(), *(f"over {SYSTEMS[rival]}, p" for rival in RIVALS))
MTEB_TESTED = "two-stage"
MTEB_HEADER = ("MTEB task", "queries", "base", "trained embedding", "trained, two stages", "over base, p")
SHORT_TASKS = {  # task and first stage → the README's name
    ("dl21", "bm25"): "TREC DL 2021, from BM25",
    ("dl21", "splade"): "TREC DL 2021, from SPLADE++",
    ("nfc", "own"): "NFCorpus, test",
    ("scifact", "own"): "SciFact, test",
}
SHORT_SYSTEMS = ("first_stage", "baseline_embedding", "embedding", "listwise")
SHORT_HEADER = (
    "nDCG@10", "queries", "first stage", "base, embedding", "bundled, embedding", "bundled, listwise",
    "listwise over base, p",
)  # fmt: skip


def summary(entries: Sequence[Entry]) -> str:
    """Make the full tables, in Markdown: one of reranking, and one of MTEB if both models were run there.

    Raises:
        ValueError: A system is missing, on all tasks or on one, or is one of several models; or so is a mode of MTEB.
    """
    part = [entry for entry in entries if entry.result.benchmark == "reranking"]
    models = {name: _only_model(name, part) for name in SYSTEMS}
    tables = [
        (HEADER, [_line(of, SYSTEMS, RIVALS) for of in _by_task(part).values()]),
        (MTEB_HEADER, _mteb_lines(entries, models[TESTED], models[RIVALS[0]])),
    ]
    return "\n".join(Table("summary", "", header, tuple(lines)).markdown for header, lines in tables if lines)


def short_summary(entries: Sequence[Entry]) -> str:
    """Make the README's table, in Markdown: four tasks, the base's embedding beside the trained model.

    Raises:
        ValueError: A task or a system is missing, or a system is one of several models.
    """
    part = [entry for entry in entries if (entry.result.task, entry.result.first_stage) in SHORT_TASKS]
    for name in SHORT_SYSTEMS:
        _only_model(name, part)
    lines, tasks = [], _by_task(part)
    for task, title in SHORT_TASKS.items():
        name, *cells = _line(tasks.get(task, {}), SHORT_SYSTEMS, RIVALS[:1], " ".join(task))
        marks = name.removeprefix(tasks[task][TESTED].column)
        lines.append((title + marks, *cells))
    return Table("summary", "", SHORT_HEADER, tuple(lines)).markdown


def _only_model(name: str, entries: Sequence[Entry]) -> str:
    models = {entry.model for entry in entries if entry.name == name}
    if len(models) != 1:
        found = f"results of several models ({', '.join(sorted(models))})" if models else "no results"
        raise ValueError(
            f"There are {found} for the system {name}; run e2rank eval rerank with one --model and one --baseline."
        )
    return models.pop()


def _by_task(entries: Iterable[Entry], form: str = "{0.name}") -> dict[tuple[str, str], dict[str, Entry]]:
    """For each task and first stage, its entries by a name."""
    found: dict[tuple[str, str], dict[str, Entry]] = {}
    for entry in entries:
        found.setdefault((entry.result.task, entry.result.first_stage), {})[form.format(entry)] = entry
    return found


def _mteb_lines(entries: Sequence[Entry], model: str, baseline: str) -> list[tuple[str, ...]]:
    """The cells of each of MTEB's tasks that has scores by query, of both models."""
    part = [entry for entry in entries if entry.result.benchmark == "mteb" and entry.system.per_query]
    tasks = _by_task((entry for entry in part if entry.model in (model, baseline)), "{0.name} of {0.model}")
    shown = [f"{MTEB_REFERENCE} of {baseline}", f"{MTEB_REFERENCE} of {model}", f"{MTEB_TESTED} of {model}"]
    both = [of for of in tasks.values() if len({entry.model for entry in of.values()}) == 2]
    return [_line(of, shown, shown[:1]) for of in both]


def _line(of: Mapping[str, Entry], names: Iterable[str], rivals: Iterable[str], task: str = "") -> tuple[str, ...]:
    """Task, number of queries, scores, and the gain of the last system over each rival."""
    if missing := [name for name in names if name not in of]:
        task = task or next(iter(of.values())).column
        raise ValueError(f"No results for {', '.join(missing)} on {task}; run e2rank eval on it.")
    shown = [of[name] for name in names]
    scores = [f"{100 * mean(entry.system.per_query):.2f}" for entry in shown]
    found = [compare(name, shown[-1].system.per_query, of[name].system.per_query) for name in rivals]
    gains = [f"{100 * test.difference:+.2f}, {p_value(test.p)}" for test in found]
    return (column_with_marks(*shown), str(shown[0].result.queries), *scores, *gains)


def put_into(path: Path, text: str, name: str = "results") -> None:
    """Replace the text between the marks of a file, which bear a name, whole or not at all.

    Raises:
        ValueError: The marks are not there, each once.
        OSError: The file cannot be read or written.
    """
    marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    content, number = marks.subn(lambda found: found[1] + text + found[2], path.read_text(encoding="utf-8"))
    if number != 1:
        raise ValueError(f"{path} has {number} places from <!-- {name} --> to <!-- /{name} -->; give it one.")
    write_text(path, content)
