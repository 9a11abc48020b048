"""Documents on disk or in an object store, in a table of LanceDB: vectors, texts, fields, and an index of words.

A document is a row. Each write is one version of the table: whole, or not there. A document of several passages has a
list of vectors in its row, and LanceDB scores it by the best one. So an id is in the table once, whatever happens.

Axes: B queries, P passages of one document, D dimensions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import reduce
from itertools import pairwise
from operator import and_
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from e2rank_st.data.files import DataError
from e2rank_st.search.condition import FIELDS, allowed_values
from e2rank_st.search.records import Record
from e2rank_st.search.store import Entry, FirstStage, Found, VectorIndex, Where
from e2rank_st.search.vectors import Matrix, unit_rows

try:
    import lancedb
    import pyarrow as pa
    from lancedb.expr import Expr, col, lit
    from lancedb.index import FTS, IvfRq, IvfSq
    from lancedb.query import FullTextOperator, MultiMatchQuery
except ModuleNotFoundError as error:
    raise ImportError("An index on disk needs LanceDB: pip install 'e2rank-st[search]'") from error

from e2rank_st.search import columns

__all__ = ["LanceStore"]

TABLE = "documents"
ABOUT = b"e2rank-st"  # key of the description in the table's schema
OWN = (*FIELDS, "vector")
VECTORS = "vectors"  # name of their index
KINDS = {"int8": IvfSq, "rabitq": IvfRq}
APPROXIMATE_FROM = 100_000  # documents
PROBES = 20  # parts of the index that a search reads
REFINE = {"exact": 1, "int8": 2, "rabitq": 10}  # so many times the wanted rows are compared exactly
WORDS = ("title", "text")  # the columns that have an index of words
LOCK = ".e2rank.lock"
INTERNALS = re.compile(r"^lance error: |LanceError\(\w+\): |, /\S+:\d+:\d+$")  # of LanceDB, in its messages
FULL = ("No space left", "quota exceeded", "File too large")
WAIT_S = 60.0  # for another writer


class LanceStore:
    """Documents by id in a folder, or at the address of an object store.

    Args:
        place: The folder or address.
        table: The open table.
    """

    def __init__(self, place: str, table: Any) -> None:
        self.place = place
        self._table = table

    @classmethod
    def create(cls, place: str, about: Mapping[str, Any], dimension: int, *, dtype: str, passages: bool) -> LanceStore:
        """Make an empty table.

        Args:
            place: A folder, new or without a table, or an address.
            about: A description, as JSON can hold it.
            dimension: D.
            dtype: ``"float16"`` or ``"float32"``, of the stored vectors.
            passages: Whether a document may have several vectors.

        Raises:
            OSError: The folder cannot be written.
        """
        vector = pa.list_({"float16": pa.float16(), "float32": pa.float32()}[dtype], dimension)
        schema = pa.schema(
            [*((name, pa.string()) for name in OWN[:-1]), ("vector", pa.list_(vector) if passages else vector)],
            metadata={ABOUT: json.dumps(about).encode()},
        )
        with _clear_errors(place):
            made = cls(place, _connect(place).create_table(TABLE, schema=schema))
            made._index_words()
        return made

    @classmethod
    def open(cls, place: str, version: int | None = None) -> LanceStore:
        """Open the table of a folder or an address, or an earlier version of it, which cannot be written.

        Raises:
            FileNotFoundError: There is no index.
            OSError: It cannot be read.
        """
        missing = FileNotFoundError(f"There is no index in {place}. Make one with SearchIndex.create.")
        if "://" not in place and not Path(place, f"{TABLE}.lance").is_dir():
            raise missing  # to connect would make the folder
        with _clear_errors(place):
            try:
                return cls(place, _connect(place).open_table(TABLE, version=version))
            except ValueError as error:
                raise (missing if "not found" in str(error) else error) from error

    @property
    def about(self) -> dict[str, Any]:
        """The description that :meth:`create` was given.

        Raises:
            ValueError: Something else made the table.
        """
        try:
            found: dict[str, Any] = json.loads((self._table.schema.metadata or {})[ABOUT])
        except (KeyError, ValueError) as error:
            raise ValueError(f"The table in {self.place} is not an index of e2rank-st. Give another path.") from error
        return found

    @property
    def version(self) -> int:
        """Number of the version; each write makes a new one."""
        return int(self._table.version)

    @property
    def fields(self) -> dict[str, str]:
        """The further fields of documents with the types of their columns."""
        return {field.name: str(field.type) for field in self._table.schema if field.name not in OWN}

    def __len__(self) -> int:
        """Number of documents."""
        with _clear_errors(self.place):
            return int(self._table.count_rows())

    def add(self, entries: Sequence[Entry]) -> None:
        """Add documents; one with a known id replaces the old one. All of them are added, or none.

        Raises:
            DataError: A field has a different kind of value than before.
            OSError: The folder cannot be written, or another writer does not end.
        """
        with self._writing(), _clear_errors(self.place):
            given = {name: [entry.record.fields.get(name) for entry in entries] for name in _names(entries)}
            fresh = [columns.field_of(name, part) for name, part in given.items() if name not in self.fields]
            known = {field.name: field for field in [*self._table.schema, *fresh]}
            missing = [None] * len(entries)
            arrays = {name: columns.column(known[name], given.get(name, missing)) for name in known if name not in OWN}
            if fresh:
                self._table.add_columns(pa.schema(fresh))
            own = {name: [getattr(entry.record, name) for entry in entries] for name in OWN[:-1]}
            vector = _vectors([entry.vectors for entry in entries], known["vector"].type)
            rows = pa.table({**own, "vector": vector, **arrays}).cast(self._table.schema)
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(rows)

    def get(self, ids: Sequence[str]) -> dict[str, Entry]:
        """Find documents by id; unknown ids are left out.

        Raises:
            OSError: The folder cannot be read.
        """
        if not ids:
            return {}
        with _clear_errors(self.place):
            rows = self._table.search().where(col("id").isin(ids)).limit(len(ids)).to_arrow()
        found = {entry.record.id: entry for entry in _entries(rows)}
        return {id_: found[id_] for id_ in ids if id_ in found}

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents by id; unknown ids are left out.

        Raises:
            OSError: The folder cannot be written, or another writer does not end.
        """
        if ids:
            with self._writing(), _clear_errors(self.place):
                self._table.delete(col("id").isin(ids))

    def search(
        self, queries: Sequence[str], vectors: Matrix, count: int, first_stage: FirstStage, where: Where
    ) -> list[list[Found]]:
        """Find the best documents of each query: see :class:`~e2rank_st.search.store.Store`.

        Raises:
            ValueError: The condition is not one, or names a field that the index does not have.
            OSError: The folder cannot be read.
        """
        condition = _condition(where, self.fields)
        with _clear_errors(self.place, where):
            refine = REFINE[self.vector_index]
            return [
                _found(self._asked(*asked, first_stage, condition, refine).limit(count).to_arrow())
                for asked in zip(queries, vectors, strict=True)
            ]

    def _asked(self, query: str, vector: Matrix, first_stage: FirstStage, condition: Any, refine: int) -> Any:
        words = MultiMatchQuery(query, list(WORDS), operator=FullTextOperator.OR, boosts=None)
        if first_stage == "text":
            found = self._table.search(words, query_type="fts")
        elif first_stage == "vector":
            found = self._table.search(vector, vector_column_name="vector").distance_type("cosine")
        else:
            found = self._table.search(query_type="hybrid", vector_column_name="vector")
            found = found.vector(vector).text(words).distance_type("cosine")
        if first_stage != "text":
            found = found.nprobes(PROBES).refine_factor(refine)
        return found if condition is None else found.where(condition, prefilter=True)

    @property
    def vector_index(self) -> str:
        """How near vectors are found: ``"exact"``, ``"int8"`` or ``"rabitq"``."""
        made = {index.index_type for index in self._table.list_indices() if index.name == VECTORS}
        return next((name for name, kind in KINDS.items() if kind.__name__ in made), "exact")

    def optimize(self, vector_index: VectorIndex) -> None:
        """Join small files, and put all documents into the indexes of words and vectors.

        Raises:
            OSError: The folder cannot be written, or another writer does not end.
        """
        with self._writing(), _clear_errors(self.place):
            self._index_words()
            now, wanted = self.vector_index, str(vector_index)
            if wanted == "auto":
                wanted = "int8" if now == "exact" and len(self) >= APPROXIMATE_FROM else now
            if wanted != now and now != "exact":
                self._table.drop_index(VECTORS)
            if wanted != now and wanted != "exact":
                self._table.create_index("vector", config=KINDS[wanted](distance_type="cosine"), name=VECTORS)
            self._table.optimize()

    def _index_words(self) -> None:
        """Make the indexes of words that are missing: a stop may have come between the table and them."""
        made = {name for index in self._table.list_indices() for name in index.columns}
        for name in WORDS:
            if name not in made:
                self._table.create_index(name, config=FTS())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Wait until no other process or thread writes. Two of them could both add the same id."""
        lock: AbstractContextManager[Any] = nullcontext()
        if "://" not in self.place:
            lock = FileLock(Path(self.place, LOCK), timeout=WAIT_S)
        try:
            with lock:
                yield
        except Timeout as error:
            raise OSError(f"Another program has been writing to {self.place} for {WAIT_S:.0f} s. Try again.") from error


def _connect(place: str) -> Any:
    # Each read sees what other programs have written before it.
    return lancedb.connect(place, read_consistency_interval=timedelta(0))


@contextmanager
def _clear_errors(place: str, where: Where = None) -> Iterator[None]:
    """Turn errors of LanceDB into those of Python, with the place instead of the internals."""
    try:
        yield
    except DataError:
        raise
    except (RuntimeError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and error.errno is None:
            raise
        reason = INTERNALS.sub("", str(error))
        if where is not None and (isinstance(error, ValueError) or "Cast error" in reason):
            raise ValueError(f"where={where!r:.200} is not a condition on this index: {reason}") from error
        if any(mark in reason for mark in FULL):
            advice = "Nothing in it is lost. Make room, and make the same call again."
            raise OSError(f"The index in {place} cannot be written: {reason}. {advice}") from error
        raise OSError(
            f"The index in {place} cannot be used: {reason}. If a file of it is damaged, an earlier version may open: "
            "SearchIndex.open(path, version=...), where info() tells the last one."
        ) from error


def _condition(where: Where, fields: Iterable[str]) -> Any:
    """A condition for LanceDB: its own SQL or expression as it is, and a mapping of fields to allowed values.

    Values of a mapping never become part of a text of SQL.
    """
    if where is None or isinstance(where, (str, Expr)):
        return where
    return reduce(and_, [_among(name, values) for name, values in allowed_values(where, fields).items()])


def _among(name: str, values: list[Any]) -> Any:
    return col(name) == lit(values[0]) if len(values) == 1 else col(name).isin(values)


def _names(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry.record.fields))


def _vectors(matrices: Sequence[Matrix], kind: pa.DataType) -> pa.Array:
    """A column of vectors, or of lists of vectors if its type is one."""
    single = kind.value_type if pa.types.is_list(kind) else kind
    rows = np.concatenate(matrices).astype(single.value_type.to_pandas_dtype())  # (all passages, D)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=single)
    if single is kind:
        return vectors
    return pa.ListArray.from_arrays(np.cumsum([0, *map(len, matrices)], dtype=np.int32), vectors, type=kind)


def _found(rows: pa.Table) -> list[Found]:
    """The rows of a search with their scores; a distance of LanceDB is 1 − cosine."""
    name = next(name for name in ("_relevance_score", "_score", "_distance") if name in rows.column_names)
    scores = rows[name].to_numpy()
    scores = 1 - scores if name == "_distance" else scores
    return [Found(entry, score) for entry, score in zip(_entries(rows), scores.tolist(), strict=True)]


def _entries(rows: pa.Table) -> list[Entry]:
    own = {name: rows[name].to_pylist() for name in OWN[:-1]}
    fields = [field for field in rows.schema if field.name not in OWN and not field.name.startswith("_")]
    further = {field.name: columns.values(field, rows[field.name]) for field in fields}
    return [
        Entry(
            Record(
                own["id"][row],
                own["text"][row],
                own["title"][row],
                {name: part[row] for name, part in further.items() if part[row] is not None},
            ),
            vectors,
        )
        for row, vectors in enumerate(_matrices(rows["vector"].combine_chunks()))
    ]


def _matrices(array: Any) -> list[Matrix]:
    """The vectors of each row, (P, D)."""
    if not len(array):
        return []
    is_list = pa.types.is_list(array.type)
    offsets = array.offsets.to_numpy() - array.offsets[0].as_py() if is_list else np.arange(len(array) + 1)
    flat = array.flatten() if is_list else array
    values = flat.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    vectors = unit_rows(values.reshape(len(flat), -1))
    return [vectors[start:stop] for start, stop in pairwise(offsets)]
