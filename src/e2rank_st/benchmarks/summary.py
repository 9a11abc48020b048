"""Results → the tables of README and docs: a task a row, and what listwise reranking gains there.

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
    "embedding": "vectors alone",
    "rocchio": "vectors + Rocchio",
    "listwise": "listwise",
}
FUSED = "fused"  # only where a first stage's scores say enough to be mixed in
TESTED, RIVALS = "listwise", ("embedding", "rocchio")
HEADER = ("task", "queries", *SYSTEMS.values(), FUSED, *(f"listwise over {SYSTEMS[rival]}, p" for rival in RIVALS))
MTEB_TESTED = "two-stage"
MTEB_HEADER = ("MTEB task", "queries", "vectors alone", "two stages", "gain, p")
SHORT_TASKS = {  # task and first stage → the README's name, and the system to use there
    ("dl21", "bm25"): ("TREC DL 2021, from BM25", TESTED),
    ("dl21", "splade"): ("TREC DL 2021, from SPLADE++, fused", FUSED),
    ("nfc", "own"): ("NFCorpus, test", TESTED),
    ("scifact", "own"): ("SciFact, test", TESTED),
}
SHORT_RIVALS = ("first_stage", "embedding")
SHORT_HEADER = ("nDCG@10", "model", "queries", "first stage", "vectors alone", "reranked", "gain, p")


def summary(models: Iterable[Sequence[Entry]]) -> str:
    """Make the full tables, in Markdown: for each model one of reranking, and one of MTEB if it was run there.

    Args:
        models: The results of each model.

    Raises:
        ValueError: A system is missing, on all tasks or on one, or is one of several models; or so is a mode of MTEB.
    """
    return "\n".join(map(_of_model, models))


def _of_model(entries: Sequence[Entry]) -> str:
    name = _only_model(entries)
    tables = [
        (HEADER, [_line(of) for of in _by_task(entries).values()]),
        (MTEB_HEADER, _mteb_lines([entry for entry in entries if entry.model == name])),
    ]
    made = [Table("summary", "", header, tuple(lines)).markdown for header, lines in tables if lines]
    return "\n".join([f"### {_short(name)}\n", *made])


def short_summary(models: Iterable[Sequence[Entry]]) -> str:
    """Make the README's table, in Markdown: four tasks, each model on them.

    A gain is over the better of the first stage and the vectors alone, so over what one would use otherwise.

    Args:
        models: The results of each model.

    Raises:
        ValueError: A task or a system is missing, or a system is one of several models.
    """
    lines = []
    found = [(_short(_only_model(entries)), _by_task(entries)) for entries in models]
    for task, (title, tested) in SHORT_TASKS.items():
        for name, tasks in found:
            of = tasks.get(task, {})
            shown = _systems(of, [*SHORT_RIVALS, tested], " ".join(task))
            rival = max(shown[:-1], key=lambda entry: entry.main)
            marks = column_with_marks(*shown).removeprefix(shown[-1].column)
            lines.append((title + marks, name, *_scores(shown), _gain(shown[-1], rival)))
    return Table("summary", "", SHORT_HEADER, tuple(lines), labels=2).markdown


def _only_model(entries: Sequence[Entry]) -> str:
    shown = {TESTED, FUSED, *RIVALS}
    models = {entry.model for entry in entries if entry.result.benchmark == "reranking" and entry.name in shown}
    if len(models) != 1:
        found = f"results of several models ({', '.join(sorted(models))})" if models else "no results of reranking"
        raise ValueError(f"There are {found}; run e2rank eval rerank with one --model.")
    return models.pop()


def _short(model: str) -> str:
    return model.rpartition("/")[2]


def _by_task(entries: Iterable[Entry], benchmark: str = "reranking") -> dict[tuple[str, str], dict[str, Entry]]:
    """For each task and first stage, its entries by system; without those that have no scores by query."""
    found: dict[tuple[str, str], dict[str, Entry]] = {}
    for entry in entries:
        if entry.result.benchmark == benchmark and entry.system.per_query:
            found.setdefault((entry.result.task, entry.result.first_stage), {})[entry.name] = entry
    return found


def _mteb_lines(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """The cells of each of MTEB's tasks that has scores by query."""
    lines = []
    for of in _by_task(entries, "mteb").values():
        shown = _systems(of, [MTEB_REFERENCE, MTEB_TESTED])
        lines.append((column_with_marks(*shown), *_scores(shown), _gain(shown[1], shown[0])))
    return lines


def _line(of: Mapping[str, Entry]) -> tuple[str, ...]:
    """Task, number of queries, scores, and the gain of listwise reranking over each rival."""
    shown = _systems(of, SYSTEMS)
    mixed = _scores([of[FUSED]])[1] if FUSED in of else ""
    return (column_with_marks(*shown), *_scores(shown), mixed, *(_gain(of[TESTED], of[rival]) for rival in RIVALS))


def _systems(of: Mapping[str, Entry], names: Iterable[str], task: str = "") -> list[Entry]:
    if missing := [name for name in names if name not in of]:
        task = task or next(iter(of.values())).column
        raise ValueError(f"No results for {', '.join(missing)} on {task}; run e2rank eval on it.")
    return [of[name] for name in names]


def _scores(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Number of queries, and each score in points."""
    scores = [f"{100 * mean(entry.system.per_query):.2f}" for entry in entries]
    return (str(entries[0].result.queries), *scores)


def _gain(entry: Entry, rival: Entry) -> str:
    test = compare(rival.name, entry.system.per_query, rival.system.per_query)
    return f"{100 * test.difference:+.2f}, {p_value(test.p)}"


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
