"""A data file → its rows, one at a time, each with its place, and every bad one refused or counted.

Memory does not grow with the file: JSON lines are read by line, tab-separated values by line, parquet in small batches.
Whoever parses a row says what is wrong with it; the reading loop here adds where.
"""

from __future__ import annotations

import gzip
import importlib
import json
import logging
import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar, cast

__all__ = [
    "ROW_FILES",
    "DataError",
    "Row",
    "column_names",
    "id_field",
    "number_field",
    "parse_rows",
    "pyarrow_parquet",
    "text_field",
]

logger = logging.getLogger(__name__)

BATCH_ROWS = 128  # a slate may hold a hundred passages, so a batch is some megabytes
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
Row: TypeAlias = Mapping[str, Any]
Parsed = TypeVar("Parsed")


class DataError(ValueError):
    """A row of a file, or a slate made in memory, that would train or score silently wrong.

    Args:
        field: The field that is wrong.
        problem: What is wrong with it, in words that do not vary, since skipped rows are counted by them.
        detail: What was there, and what to do.
        place: Where, usually file and line.
    """

    def __init__(self, field: str, problem: str, detail: str, place: str = "") -> None:
        super().__init__(f"{place}: {field}: {problem}; {detail}" if place else f"{field}: {problem}; {detail}")
        self.field = field
        self.problem = problem
        self.detail = detail
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled by its message alone unless told otherwise: worker processes have to pass it on.
        return type(self), (self.field, self.problem, self.detail, self.place)

    @property
    def reason(self) -> str:
        """Field and problem: what skipped rows are counted by."""
        return f"{self.field}: {self.problem}"

    def at(self, place: str) -> DataError:
        """The same error, with its place."""
        return DataError(self.field, self.problem, self.detail, place)


def parse_rows(
    path: str | os.PathLike[str], parse: Callable[[Row], Parsed], *, skip_bad_rows: bool = False
) -> Iterator[Parsed]:
    """Parse the rows of a file, one at a time.

    Args:
        path: A file whose name ends as one of :data:`ROW_FILES`.
        parse: What makes a value of a row; it raises DataError where it cannot.
        skip_bad_rows: Leave bad rows out and log, at the end, how many there were for each reason.

    Yields:
        What ``parse`` made, in the order of the file.

    Raises:
        DataError: A row is bad, or the file is damaged; lines and rows are counted from 1.
        ValueError: The file is of no known form.
        OSError: The file cannot be read.
        ImportError: The file is parquet and pyarrow is missing.
    """
    skipped: Counter[str] = Counter()
    total = 0
    try:
        for place, raw in _opened(Path(path)):
            total += 1
            try:
                value = parse(_record(raw))
            except DataError as error:
                if not skip_bad_rows:
                    raise error.at(place) from error.__cause__
                skipped[error.reason] += 1
            else:
                yield value
    finally:
        if skipped:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common())
            logger.warning("Skipped %d of %d rows of %s: %s.", skipped.total(), total, path, reasons)


def column_names(path: str | os.PathLike[str]) -> frozenset[str]:
    """Names of a file's columns; of JSON lines, those of the first line.

    Raises:
        DataError: The first line is no JSON object, or the file is damaged or empty.
        ValueError: The file is of no known form.
        OSError: The file cannot be read.
        ImportError: The file is parquet and pyarrow is missing.
    """
    path = Path(path)
    if path.name.endswith(".parquet"):
        path.stat()  # as below
        with _damage(path):
            return frozenset(pyarrow_parquet().read_schema(path).names)
    for place, raw in _opened(path):
        try:
            return frozenset(_record(raw))
        except DataError as error:
            raise error.at(place) from error.__cause__
    raise DataError("file", "empty", "give one with at least one row.", str(path))


def text_field(row: Row, field: str) -> str:
    """The text in a field.

    Raises:
        DataError: It is missing, no string, blank, or holds half of a surrogate pair, which no tokenizer takes.
    """
    value = row.get(field)
    if value is None:
        raise DataError(field, "missing", f"the row has {', '.join(map(repr, row)) or 'no fields'}.")
    if not isinstance(value, str):
        raise DataError(field, "no string", f"got {type(value).__name__} {value!r:.60}; give a string.")
    if not value.strip():
        raise DataError(field, "empty", "give a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(field, "half a character", f"{value[error.start : error.end]!r}; write it whole.") from error
    return value


def id_field(row: Row, field: str) -> str:
    """The id in a field, as a string; whole numbers are ids, too.

    Raises:
        DataError: It is missing or something else.
    """
    value = row.get(field)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text_field(row, field)


def number_field(row: Row, field: str) -> float:
    """The finite number in a field, or in the string there.

    Raises:
        DataError: It is missing or something else.
    """
    value = row.get(field)
    try:
        result = math.nan if isinstance(value, bool) else float(cast("Any", value))
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise DataError(field, "no number", f"got {value!r:.60}; give a finite number.")
    return result


def pyarrow_parquet() -> Any:
    """The module ``pyarrow.parquet``.

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'e2rank-st[train]'") from error


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Name the file where a library's error about its content does not."""
    try:
        yield
    except DataError:
        raise
    # pyarrow's ArrowInvalid is a ValueError; a file that is not there or not ours to read says so itself.
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise DataError("file", "damaged", f"{error}; fetch or write it again.", str(path)) from error


def _opened(path: Path) -> Iterator[tuple[str, bytes | Row]]:
    """Yield place and content of each row: a line that is still to be parsed, or the fields themselves."""
    for ending, read in ROW_FILES.items():
        if path.name.endswith(ending):
            return read(path)
    raise ValueError(f"{path} is of no known form; its name has to end in {', '.join(ROW_FILES)}.")


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield place and content of each line that is not blank."""
    opener = gzip.open if path.name.endswith(".gz") else open
    with cast("BinaryIO", opener(path, "rb")) as file:
        lines, line = iter(file), 0
        while True:
            with _damage(path):
                raw = next(lines, None)
            if raw is None:
                return
            line += 1
            raw = raw.removeprefix(BYTE_ORDER_MARK) if line == 1 else raw
            if raw.strip():
                yield f"{path}:{line}", raw


def _separated(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield place and fields of each line under a header; a field that a short line lacks is missing."""
    header: list[str] = []
    for place, raw in _lines(path):
        fields = _decoded(raw).rstrip("\r\n").split("\t")
        if header:
            yield place, dict(zip(header, fields, strict=False))
        else:
            header = fields


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield place and fields of each row; the file is mapped, so only a batch of it is decoded at a time."""
    library = pyarrow_parquet()
    path.stat()  # of a missing file Python says so, and Arrow much more
    with _damage(path):
        file = library.ParquetFile(path, memory_map=True)
    with file:
        batches, row = file.iter_batches(batch_size=BATCH_ROWS), 0
        while True:
            with _damage(path):
                batch = next(batches, None)
            if batch is None:
                return
            for fields in batch.to_pylist():
                row += 1
                yield f"{path}:row {row}", fields


def _record(raw: bytes | Row) -> Row:
    """The fields of a row."""
    if not isinstance(raw, bytes):
        return raw
    try:
        value = json.loads(_decoded(raw))
    except json.JSONDecodeError as error:
        raise DataError("line", "no JSON", f"{error.msg} at column {error.colno}; write an object a line.") from error
    if not isinstance(value, dict):
        raise DataError("line", "no JSON object", f"got {type(value).__name__}; write an object a line.")
    return value


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError("line", "not UTF-8", f"{error.reason} at byte {error.start}; convert the file.") from error


# How the name of a file ends → how its rows are read.
ROW_FILES: Mapping[str, Callable[[Path], Iterator[tuple[str, bytes | Row]]]] = {
    ".parquet": _parquet,
    ".jsonl": _lines,
    ".jsonl.gz": _lines,
    ".tsv": _separated,
}
