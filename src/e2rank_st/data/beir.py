"""A BEIR folder → its corpus, queries and judgements.

TextStore wait on disk and are looked up one by one, so that memory does not grow with the corpus; the judgements, which are
a few numbers a query, are held.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from e2rank_st.data.files import ROW_FILES, DataError, Row, id_field, number_field, parse_rows, text_field

__all__ = ["JudgedCorpus", "TextStore"]

CACHE_KIB = 16 * 1024  # of a lookup's pages in memory; the rest is in its temporary file


class TextStore(Mapping[str, str]):
    """TextStore by id, in a temporary file of SQLite's that vanishes with them. Ids come in the order of insertion.

    Args:
        pairs: Ids and texts.

    Raises:
        DataError: An id comes twice.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        # An empty name is a private database on disk. Generators that read it may be handed on to another thread.
        self._database = sqlite3.connect("", check_same_thread=False)
        weakref.finalize(self, self._database.close)
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._database.execute("CREATE TABLE texts (place INTEGER PRIMARY KEY, id TEXT UNIQUE, text TEXT)")
        for id_, content in pairs:
            self.add(id_, content)

    def add(self, id_: str, content: str) -> None:
        """Add a text.

        Raises:
            DataError: The id is there already.
        """
        try:
            self._database.execute("INSERT INTO texts (id, text) VALUES (?, ?)", (id_, content))
        except sqlite3.IntegrityError as error:
            raise DataError("_id", "comes twice", f"{id_!r} has a text already; give each id once.") from error

    def __getitem__(self, id_: str) -> str:
        found = self._database.execute("SELECT text FROM texts WHERE id = ?", (id_,)).fetchone()
        if found is None:
            raise KeyError(id_)
        return str(found[0])

    def __contains__(self, id_: object) -> bool:
        return self._database.execute("SELECT 1 FROM texts WHERE id = ?", (id_,)).fetchone() is not None

    def __iter__(self) -> Iterator[str]:
        return (str(id_) for (id_,) in self._database.execute("SELECT id FROM texts ORDER BY place"))

    def __len__(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM texts").fetchone()[0])


@dataclass(frozen=True)
class JudgedCorpus:
    """What candidates are mined from, and what judged slates are read from.

    Attributes:
        corpus: Documents by id.
        queries: Queries by id, those of other splits among them.
        judgements: For each query of the split, by id, the grades of its judged documents, by id; higher is better.
    """

    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    judgements: Mapping[str, Mapping[str, float]]

    @classmethod
    def load(cls, folder: str | os.PathLike[str], split: str, *, skip_bad_rows: bool = False) -> JudgedCorpus:
        """Read a folder in BEIR's layout: ``corpus``, ``queries``, and ``qrels_{split}`` or ``qrels/{split}``.

        Each is parquet, JSON lines (also compressed) or tab-separated with a header, with the columns
        ``_id, title, text``; ``_id, text``; ``query-id, corpus-id, score``. A title is put before its text.

        Args:
            folder: The folder.
            split: Whose judgements, for example ``train``.
            skip_bad_rows: Leave bad rows out and log how many there were, instead of refusing the file.

        Raises:
            FileNotFoundError: A file is missing; the message says which splits there are.
            DataError: A row is bad: an id that comes twice, a judgement of a text that is not there, a grade that is
                no number.
            ImportError: The files are parquet and pyarrow is missing.
        """
        folder = Path(folder)
        # Found before anything is read: a wrong split shows at once.
        files = [_find(folder, stems) for stems in (("corpus",), ("queries",), (f"qrels_{split}", f"qrels/{split}"))]
        corpus, queries = (_texts(path, skip_bad_rows) for path in files[:2])
        judgements: dict[str, dict[str, float]] = {}

        def judge(row: Row) -> None:
            query, document, grade = id_field(row, "query-id"), id_field(row, "corpus-id"), number_field(row, "score")
            for field, id_, known in (("query-id", query, queries), ("corpus-id", document, corpus)):
                if id_ not in known:
                    raise DataError(field, "unknown", f"{id_!r} has no text in {folder}.")
            if judgements.setdefault(query, {}).setdefault(document, grade) != grade:
                raise DataError("score", "judged twice", f"{document!r} already has another grade for {query!r}.")

        for _ in parse_rows(files[2], judge, skip_bad_rows=skip_bad_rows):
            pass
        return cls(corpus, queries, judgements)


def _texts(path: Path, skip_bad_rows: bool) -> TextStore:
    texts = TextStore()
    for _ in parse_rows(path, lambda row: texts.add(id_field(row, "_id"), _document(row)), skip_bad_rows=skip_bad_rows):
        pass
    return texts


def _document(row: Row) -> str:
    """Title and text; a document may consist of one of them alone."""
    parts = [text_field(row, field).strip() for field in ("title", "text") if row.get(field) not in (None, "")]
    return " ".join(parts) or text_field(row, "text")


def _find(folder: Path, stems: tuple[str, ...]) -> Path:
    """The file with one of these names, whatever its form."""
    names = [f"{stem}{ending}" for stem in stems for ending in ROW_FILES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    judged = [*folder.glob("qrels_*"), *folder.glob("qrels/*")]
    splits = sorted({path.name.removeprefix("qrels_").split(".")[0] for path in judged})
    raise FileNotFoundError(
        f"{folder} holds none of {', '.join(names)}. Its splits: {', '.join(splits) or 'none'}; "
        "give a folder in BEIR's layout and one of its splits."
    )
