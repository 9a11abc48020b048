"""A BEIR folder → its corpus, queries and judgements.

Texts stay on disk and are looked up one by one, so memory does not grow with the corpus. Judgements stay in memory:
they are a few numbers a query.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from e2rank_st.data.files import ROW_FILES, DataError, Row, id_field, number_field, parse_rows, text_field
from e2rank_st.documents_e2rank import join_fields

__all__ = ["JudgedCorpus", "TextStore"]

TEMPLATE = "{title} {text}"  # as BEIR and MTEB join them

CACHE_KIB = 16 * 1024  # of a store's pages stay in memory; the rest is in its temporary file


class TextStore(Mapping[str, str]):
    """Texts by id, in the order of insertion. They are in a temporary SQLite file that vanishes with the store."""

    def __init__(self) -> None:
        # An empty name is a private database on disk. A generator that reads it may move to another thread.
        self._database = sqlite3.connect("", check_same_thread=False)
        weakref.finalize(self, self._database.close)
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._database.execute("CREATE TABLE texts (place INTEGER PRIMARY KEY, id TEXT UNIQUE, text TEXT)")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, titles: bool = True, skip_bad_rows: bool = False) -> TextStore:
        """Read a file with the columns ``_id``, ``text`` and perhaps ``title``, as of a corpus or of queries.

        Args:
            path: The file.
            titles: Whether to put a title before its text. Without titles, a document of a title alone keeps it.
            skip_bad_rows: Leave bad rows out and log their number, instead of refusing the file.

        Raises:
            DataError: A row is bad, or an id appears twice.
        """
        texts = cls()

        def add(row: Row) -> None:
            texts.add(id_field(row, "_id"), _document(row, titles))

        for _ in parse_rows(path, add, skip_bad_rows=skip_bad_rows):
            pass
        return texts

    def add(self, id_: str, content: str) -> None:
        """Add a text; an id that the store has already is a DataError."""
        try:
            self._database.execute("INSERT INTO texts (id, text) VALUES (?, ?)", (id_, content))
        except sqlite3.IntegrityError as error:
            raise DataError("_id", "appears twice", f"{id_!r} has a text already; give each id once.") from error

    def __getitem__(self, id_: str) -> str:
        found = self._database.execute("SELECT text FROM texts WHERE id = ?", (id_,)).fetchone()
        if found is None:
            raise KeyError(id_)
        return str(found[0])

    def __iter__(self) -> Iterator[str]:
        return (str(id_) for (id_,) in self._database.execute("SELECT id FROM texts ORDER BY place"))

    def __len__(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM texts").fetchone()[0])


@dataclass(frozen=True)
class JudgedCorpus:
    """A corpus with queries and judgements: candidates are mined from it, and judged slates are read from it.

    Attributes:
        corpus: Documents by id.
        queries: Queries by id, including those of other splits.
        judgements: Query id → document id → grade, for the queries of the split. A higher grade is better.
    """

    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    judgements: Mapping[str, Mapping[str, float]]

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], split: str, *, titles: bool = True, skip_bad_rows: bool = False
    ) -> JudgedCorpus:
        """Read a folder in BEIR's layout: ``corpus``, ``queries``, and ``qrels_{split}`` or ``qrels/{split}``.

        Each file is parquet, JSON lines (also compressed), or tab-separated with a header. The columns are
        ``_id, title, text``; ``_id, text``; ``query-id, corpus-id, score``. A title is put before its text.

        Args:
            folder: The folder.
            split: The split of the judgements, for example ``train``.
            titles: Whether to put a title before its text. Without titles, a document of a title alone keeps it.
            skip_bad_rows: Leave bad rows out and log their number, instead of refusing the file.

        Raises:
            FileNotFoundError: A file is missing; the message lists the splits of the folder.
            DataError: A row is bad: an id appears twice, a judged text is missing, or a grade is not a number.
        """
        folder = Path(folder)
        # All are found before one is read, to report a wrong split at once.
        files = [_find(folder, stems) for stems in (("corpus",), ("queries",), (f"qrels_{split}", f"qrels/{split}"))]
        corpus, queries = (TextStore.load(path, titles=titles, skip_bad_rows=skip_bad_rows) for path in files[:2])
        judgements: dict[str, dict[str, float]] = {}

        def judge(row: Row) -> None:
            query, document, grade = id_field(row, "query-id"), id_field(row, "corpus-id"), number_field(row, "score")
            for field, id_, known in (("query-id", query, queries), ("corpus-id", document, corpus)):
                if id_ not in known:
                    raise DataError(field, "unknown", f"{id_!r} lacks a text in {folder}.")
            if judgements.setdefault(query, {}).setdefault(document, grade) != grade:
                raise DataError("score", "judged twice", f"{document!r} has a different grade for {query!r} already.")

        for _ in parse_rows(files[2], judge, skip_bad_rows=skip_bad_rows):
            pass
        return cls(corpus, queries, judgements)


def _document(row: Row, titles: bool) -> str:
    """Join title and text; a document may have only one of them."""
    title, text = (
        "" if row.get(field) in (None, "") else text_field(row, field).strip() for field in ("title", "text")
    )
    joined = join_fields(title, text, TEMPLATE) if titles else text or title
    return joined or text_field(row, "text")


def _find(folder: Path, stems: tuple[str, ...]) -> Path:
    """Find the file with one of these names and any known ending."""
    names = [f"{stem}{ending}" for stem in stems for ending in ROW_FILES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    judged = [*folder.glob("qrels_*"), *folder.glob("qrels/*")]
    splits = sorted({path.name.removeprefix("qrels_").split(".")[0] for path in judged})
    raise FileNotFoundError(
        f"{folder} holds none of {', '.join(names)}. Its splits: {', '.join(splits) or 'none'}; "
        "give a folder in BEIR's layout, and one of its splits."
    )
