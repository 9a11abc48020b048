"""Files in TREC's forms: judgements (``query 0 document grade``) and runs (``query Q0 document rank score system``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from e2rank_st.data.files import DataError, decoded, number_field, numbered_lines
from e2rank_st.storage import replacing

__all__ = ["read_qrels", "read_run", "write_run"]


def read_qrels(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Read judgements.

    Returns:
        Query → document → grade.

    Raises:
        DataError: A line is bad, or a document has two different grades for a query.
    """
    grades: dict[str, dict[str, float]] = {}

    def judge(fields: list[str]) -> None:
        if len(fields) != 4:
            raise DataError("line", "not a judgement", f"got {' '.join(fields)!r:.60}; write 'qid 0 docid grade'.")
        query, _, document, _ = fields
        grade = number_field({"grade": fields[3]}, "grade")
        if grades.setdefault(query, {}).setdefault(document, grade) != grade:
            raise DataError("grade", "judged twice", f"{document!r} has a different grade for {query!r}.")

    _each_line(path, judge)
    return grades


def read_run(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Read a run. As in trec_eval, the scores decide, and the ranks in the file do not.

    Equal scores keep the order of the file.

    Returns:
        Query → document → score. Queries have the order of the file; documents are sorted, best first.

    Raises:
        DataError: A line does not have six fields, a score is not a number, or a document appears twice for a query.
    """
    run: dict[str, dict[str, float]] = {}

    def add(fields: list[str]) -> None:
        if len(fields) != 6:
            advice = "write 'qid Q0 docid rank score system'."
            raise DataError("line", "not a result", f"got {' '.join(fields)!r:.60}; {advice}")
        query, _, document, _, score, _ = fields
        scores = run.setdefault(query, {})
        if document in scores:
            raise DataError("docid", "appears twice", f"{document!r} is listed for {query!r} already; give it once.")
        scores[document] = number_field({"score": score}, "score")

    _each_line(path, add)
    return {query: dict(sorted(scores.items(), key=lambda item: -item[1])) for query, scores in run.items()}


def write_run(path: str | os.PathLike[str], run: Mapping[str, Mapping[str, float]], system: str) -> None:
    """Write a run, whole or not at all. Reading it again gives exactly the same scores.

    Args:
        path: The file.
        run: Query id → document id → score, best first.
        system: Name of the run, in every line.

    Raises:
        ValueError: An id or the name is empty or holds white space, which ends a field.
    """
    for name in (system, *run, *(document for scores in run.values() for document in scores)):
        if len(name.split()) != 1 or name != name.strip():
            raise ValueError(f"Got the id {name!r}; ids in a TREC run cannot hold white space, so rename it.")
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8") as file:
        for query, scores in run.items():
            for rank, (document, score) in enumerate(scores.items(), 1):
                file.write(f"{query} Q0 {document} {rank} {score!r} {system}\n")


def _each_line(path: str | os.PathLike[str], take: Callable[[list[str]], None]) -> None:
    """Pass the fields of each line that is not blank to ``take``; an error gets the line's place."""
    with Path(path).open("rb") as file:
        for place, raw in numbered_lines(file, str(path)):
            try:
                take(decoded(raw).split())
            except DataError as error:
                raise error.at(place) from error.__cause__
