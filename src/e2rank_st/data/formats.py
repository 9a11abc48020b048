"""Training data in its usual forms → slates.

Every reader streams slates in the order of the file, and raises DataError for a bad row, with its place. All have two
options. ``source`` names all slates; by default, it is the row's own source, or else the name of the file or folder.
``skip_bad_rows`` leaves bad rows out and logs their number. Parquet needs pyarrow: an ImportError says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.files import DataError, Row, column_sets, id_field, number_field, parse_rows, text_field
from e2rank_st.data.slates import Slate, list_field, read_slates, source_field, text_list
from e2rank_st.data.trec import read_qrels

__all__ = ["FORMS", "open_slates", "read_beir", "read_columns", "read_rankings", "read_results"]


def read_beir(
    folder: str | os.PathLike[str],
    *,
    split: str = "train",
    gold_from: float = 1,
    source: str | None = None,
    skip_bad_rows: bool = False,
) -> Iterator[Slate]:
    """Read the judged documents of each query of a BEIR folder; the grades are the labels.

    Args:
        folder: A folder for :meth:`~e2rank_st.data.beir.JudgedCorpus.load`.
        split: The split of the judgements.
        gold_from: Least grade of a gold positive. NIST calls a passage relevant from 2.
        source: See above.
        skip_bad_rows: See above.

    Yields:
        A slate for each judged query, in the order of the judgements.

    Raises:
        FileNotFoundError: The folder lacks a file.
        DataError: A row is bad.
    """
    collection = JudgedCorpus.load(folder, split, skip_bad_rows=skip_bad_rows)
    for query, grades in collection.judgements.items():
        yield Slate(
            collection.queries[query],
            tuple(collection.corpus[document] for document in grades),
            tuple(grades.values()),
            tuple(grade >= gold_from for grade in grades.values()),
            Path(folder).resolve().name if source is None else source,
        )


def read_rankings(
    path: str | os.PathLike[str],
    *,
    gold_document: int | None = None,
    source: str | None = None,
    skip_bad_rows: bool = False,
) -> Iterator[Slate]:
    """Read the public E2Rank rows: ``source``, ``query``, ``document`` (N texts), ``ranking`` (1-based, best first).

    The rows do not mark a gold document: a teacher made their rankings.

    Args:
        path: JSON lines or parquet.
        gold_document: Place of the gold positive in ``document``, from 0, for files that are known to have one.
        source: See above.
        skip_bad_rows: See above.

    Yields:
        One slate for each row; the best document has the label N - 1, the worst 0.
    """

    def parse(row: Row) -> Slate:
        documents, ranking = list_field("document", row.get("document")), list_field("ranking", row.get("ranking"))
        if len(ranking) != len(documents):
            raise DataError("ranking", "lengths differ", f"got {len(ranking)} ranks for {len(documents)} documents.")
        places = [place for place in ranking if isinstance(place, int) and not isinstance(place, bool)]
        if sorted(places) != list(range(1, len(documents) + 1)):
            raise DataError("ranking", "not a permutation", f"got {ranking!r:.80}; give 1..{len(documents)} once each.")
        if gold_document is not None and not 0 <= gold_document < len(documents):
            raise DataError("document", "no gold one", f"got {len(documents)}, gold_document={gold_document}.")
        labels = {place - 1: float(worse) for worse, place in enumerate(reversed(places))}
        return Slate(
            text_field(row, "query"),
            text_list("document", documents),
            tuple(labels[place] for place in range(len(documents))),
            tuple(place == gold_document for place in range(len(documents))),
            source_field(row, Path(path).name.split(".")[0]) if source is None else source,
        )

    return parse_rows(path, parse, skip_bad_rows=skip_bad_rows)


def read_columns(
    path: str | os.PathLike[str], *, source: str | None = None, skip_bad_rows: bool = False
) -> Iterator[Slate]:
    """Read Sentence-Transformers columns: ``anchor``, ``positive``, and any of ``negative``, ``negative_1``, ...

    Yields:
        One slate for each row: the positive is gold and labelled 1, the negatives are labelled 0. A null negative is
        left out, because some tables pad short rows with nulls.
    """
    name = Path(path).name.split(".")[0] if source is None else source

    def parse(row: Row) -> Slate:
        fields = sorted((place, column) for column in row if (place := _negative(column)) is not None)
        negatives = [text_field(row, column) for _, column in fields if row[column] is not None]
        documents = (text_field(row, "positive"), *negatives)
        gold = (True, *(False for _ in negatives))
        return Slate(text_field(row, "anchor"), documents, tuple(float(flag) for flag in gold), gold, name)

    return parse_rows(path, parse, skip_bad_rows=skip_bad_rows)


def read_results(
    path: str | os.PathLike[str],
    *,
    qrels: str | os.PathLike[str] | None = None,
    gold_from: float = 1,
    source: str | None = None,
    skip_bad_rows: bool = False,
) -> Iterator[Slate]:
    """Read a first stage's results with text: ``query`` and ``hits``, best first, each with ``content`` and ``docid``.

    With judgements, the label of a passage is its grade, or None if it is unjudged. Without judgements, the order of
    the list gives the labels: a strong first stage is a teacher.

    Args:
        path: JSON lines or parquet. With judgements, each hit also names its query as ``qid``.
        qrels: Judgements in TREC's form: query id, iteration, document id, grade.
        gold_from: Least grade of a gold positive. NIST calls a passage relevant from 2.
        source: See above.
        skip_bad_rows: See above.

    Yields:
        One slate for each row; its N documents have the order of the list. Without judgements, the first has the label
        N - 1, the last 0, and none is gold.
    """
    name = Path(path).name.split(".")[0] if source is None else source
    grades = None if qrels is None else read_qrels(qrels)

    def parse(row: Row) -> Slate:
        hits = [hit if isinstance(hit, Mapping) else {} for hit in list_field("hits", row.get("hits"))]
        ranks = [number_field(hit, "rank") for hit in hits if "rank" in hit]
        if ranks != sorted(ranks):
            raise DataError("hits", "not in order", f"got the ranks {ranks!r:.60}; sort them, the best first.")
        labels: list[float | None] = [float(worse) for worse in reversed(range(len(hits)))]
        if grades is not None:
            query = id_field(hits[0] if hits else {}, "qid")
            if query not in grades:
                raise DataError(
                    "qid", "unjudged query", f"{query!r} is not in {qrels}; skip it, or read without qrels."
                )
            labels = [grades[query].get(id_field(hit, "docid")) for hit in hits]
        gold = tuple(grades is not None and label is not None and label >= gold_from for label in labels)
        return Slate(
            text_field(row, "query"), tuple(text_field(hit, "content") for hit in hits), tuple(labels), gold, name
        )

    return parse_rows(path, parse, skip_bad_rows=skip_bad_rows)


# The columns that distinguish a form, and its reader.
FORMS: tuple[tuple[frozenset[str], Callable[..., Iterator[Slate]]], ...] = (
    (frozenset({"query", "documents", "labels"}), read_slates),
    (frozenset({"query", "document", "ranking"}), read_rankings),
    (frozenset({"anchor", "positive"}), read_columns),
    (frozenset({"query", "hits"}), read_results),
)


def open_slates(path: str | os.PathLike[str], **options: Any) -> Iterator[Slate]:
    """Read slates in any known form: a folder has BEIR's form, and the columns of a file's first row show its form.

    Args:
        path: Folder or file.
        **options: Options of the reader, for example ``split`` for a folder, or ``qrels`` for a first stage's results.

    Raises:
        ValueError: The form of the file is unknown, or its first row is bad (DataError).
        TypeError: The reader does not know an option.
        OSError: The file cannot be read.
    """
    if Path(path).is_dir():
        return read_beir(path, **options)
    skip_bad_rows, found = options.get("skip_bad_rows", False), frozenset[str]()
    for found in column_sets(path, skip_bad_rows=skip_bad_rows):
        for columns, read in FORMS:
            if columns <= found:
                return read(path, **options)
        if not skip_bad_rows:
            break
    known = "; ".join(", ".join(sorted(columns)) for columns, _ in FORMS)
    raise ValueError(f"{path} has the columns {', '.join(sorted(found))}; slates are read from files with {known}.")


def _negative(column: str) -> int | None:
    """Return the number of a column of negatives, or None for a different column."""
    stem, _, place = column.partition("_")
    if stem != "negative":
        return None
    return int(place) if place.isdecimal() else 0 if not place else None
