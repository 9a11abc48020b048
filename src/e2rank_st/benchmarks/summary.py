"""Results → the tables of README and docs: a task a row, the untrained base beside the trained model.

The tables stand between two marks of a file, ``<!-- results -->`` and ``<!-- /results -->``, so that nobody types them.
Differences are in points, with the p-value of the paired randomisation test over queries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from e2rank_st.benchmarks.report import Table, p_value
from e2rank_st.benchmarks.results import MTEB_REFERENCE, Entry, check_complete, marked
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
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def summary(entries: Sequence[Entry]) -> str:
    """Make the full tables, in Markdown: one of reranking, and one of MTEB if both models were run there.

    Raises:
        ValueError: A system is missing, on all tasks or on one, or is one of several models; or so is a mode of MTEB.
    """
    part = [entry for entry in entries if entry.result.benchmark == "reranking"]
    models = {name: _only_model(name, part) for name in SYSTEMS}
    check_complete(part)
    tasks = [[entry for entry in part if entry.column == column] for column in dict.fromkeys(e.column for e in part)]
    tables = [
        (HEADER, [_line(task) for task in tasks]),
        (MTEB_HEADER, _mteb_lines(entries, models[TESTED], models[RIVALS[0]])),
    ]
    return "\n".join(Table("summary", "", header, tuple(lines)).markdown for header, lines in tables if lines)


def short_summary(entries: Sequence[Entry]) -> str:
    """Make the README's table, in Markdown: four tasks, the base's embedding beside the trained model.

    Raises:
        ValueError: A task or a system is missing, or a system is one of several models.
    """
    found = {
        (entry.result.task, entry.result.first_stage, entry.name): entry
        for entry in entries
        if (entry.result.task, entry.result.first_stage) in SHORT_TASKS
    }
    wanted = [(task, stage, name) for task, stage in SHORT_TASKS for name in SHORT_SYSTEMS]
    if missing := [f"{name} on {task} {stage}" for task, stage, name in wanted if (task, stage, name) not in found]:
        raise ValueError(f"No results for {', '.join(missing)}; run e2rank eval rerank on these tasks.")
    for name in SHORT_SYSTEMS:
        _only_model(name, list(found.values()))
    lines = []
    for (task, stage), title in SHORT_TASKS.items():
        shown = [found[task, stage, name] for name in SHORT_SYSTEMS]
        name, *cells = _cells(shown, shown[-1], shown[1:2])
        lines.append((title + name.removeprefix(shown[0].column), *cells))
    return Table("summary", "", SHORT_HEADER, tuple(lines)).markdown


def _only_model(name: str, entries: Sequence[Entry]) -> str:
    models = {entry.model for entry in entries if entry.name == name}
    if len(models) != 1:
        found = f"results of several models: {', '.join(sorted(models))}" if models else "no results"
        raise ValueError(f"For {name} there are {found}; run e2rank eval rerank with one --model and one --baseline.")
    return models.pop()


def _line(entries: Sequence[Entry]) -> tuple[str, ...]:
    """A task's cells."""
    of = {entry.name: entry for entry in entries}
    return _cells([of[name] for name in SYSTEMS], of[TESTED], [of[name] for name in RIVALS])


def _mteb_lines(entries: Sequence[Entry], model: str, baseline: str) -> list[tuple[str, ...]]:
    """The cells of each of MTEB's tasks that has scores by query, of both models."""
    of = {
        (entry.result.task, entry.model, entry.name): entry
        for entry in entries
        if entry.result.benchmark == "mteb" and entry.system.per_query
    }
    lines = []
    for task in dict.fromkeys(task for task, _, _ in of):
        if not {(task, model), (task, baseline)} <= {key[:2] for key in of}:
            continue
        keys = [(task, baseline, MTEB_REFERENCE), (task, model, MTEB_REFERENCE), (task, model, MTEB_TESTED)]
        if gaps := [f"{mode} of {name}" for _, name, mode in (key for key in keys if key not in of)]:
            raise ValueError(f"No results for {', '.join(gaps)} on {task}; run e2rank eval mteb in both modes.")
        shown = [of[key] for key in keys]
        lines.append(_cells(shown, shown[-1], shown[:1]))
    return lines


def _cells(shown: Sequence[Entry], tested: Entry, rivals: Sequence[Entry]) -> tuple[str, ...]:
    """Task, number of queries, scores, and the gain of the tested system over each rival."""
    scores = [f"{100 * mean(entry.system.per_query):.2f}" for entry in shown]
    found = [compare(rival.name, tested.system.per_query, rival.system.per_query) for rival in rivals]
    gains = [f"{100 * test.difference:+.2f}, {p_value(test.p)}" for test in found]
    return (marked(*shown), str(shown[0].result.queries), *scores, *gains)


def put_into(path: Path, text: str) -> None:
    """Replace the text between the marks of a file, whole or not at all.

    Raises:
        ValueError: The marks are not there, each once.
        OSError: The file cannot be read or written.
    """
    content, number = MARKS.subn(lambda found: found[1] + text + found[2], path.read_text(encoding="utf-8"))
    if number != 1:
        raise ValueError(f"{path} has {number} places from <!-- results --> to <!-- /results -->; give it one.")
    write_text(path, content)
