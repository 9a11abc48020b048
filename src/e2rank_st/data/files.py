"""A data file → its rows, one at a time; a bad row is refused with its place, or counted.

Memory does not grow with the file: JSON lines and tab-separated values are read by line, parquet in small batches.
The parser of a row reports the problem, and the reading loop here adds the place. The functions for a field or line
raise DataError unless it holds what they return.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar, cast

__all__ = [
    "ROW_FILES",
    "DataError",
    "Row",
    "column_names",
    "decoded",
    "id_field",
    "json_row",
    "number_field",
    "numbered_lines",
    "parse_rows",
    "pyarrow_parquet",
    "text_field",
]

logger = logging.getLogger(__name__)

BATCH_ROWS = 128  # some megabytes: a slate may hold a hundred passages
GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
Row: TypeAlias = Mapping[str, Any]
Parsed = TypeVar("Parsed")


class DataError(ValueError):
    """A bad row of a file, or a bad slate in memory, that would silently give wrong training or wrong scores.

    Args:
        field: The field that is wrong.
        problem: The problem, in fixed words, because skipped rows are counted by it.
        detail: The value, and how to correct it.
        place: The place, usually file and line.
    """

    def __init__(self, field: str, problem: str, detail: str, place: str = "") -> None:
        super().__init__(f"{place}: {field}: {problem}; {detail}" if place else f"{field}: {problem}; {detail}")
        self.field = field
        self.problem = problem
        self.detail = detail
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes pickle the error. By default, an exception is pickled by its message alone.
        return type(self), (self.field, self.problem, self.detail, self.place)

    @property
    def reason(self) -> str:
        """Field and problem; skipped rows are counted by them."""
        return f"{self.field}: {self.problem}"

    def at(self, place: str) -> DataError:
        """Return the same error, with its place."""
        return DataError(self.field, self.problem, self.detail, place)


def parse_rows(
    path: str | os.PathLike[str], parse: Callable[[Row], Parsed], *, skip_bad_rows: bool = False
) -> Iterator[Parsed]:
    """Parse the rows of a file, one at a time.

    Args:
        path: A file with an ending of :data:`ROW_FILES`.
        parse: Turns a row into a value; it raises DataError for a bad row.
        skip_bad_rows: Leave bad rows out. At the end, log their number for each reason.

    Yields:
        The values that ``parse`` returns, in the order of the file.

    Raises:
        DataError: A row is bad, or the file is damaged; lines and rows are counted from 1.
        ValueError: The form of the file is unknown.
        ImportError: The file is parquet and pyarrow is missing.
    """
    skipped: Counter[str] = Counter()
    total = 0
    try:
        for place, raw in _opened(Path(path)):
            total += 1
            try:
                value = parse(json_row(raw))
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
    """Return the names of the columns of a file's first row.

    Raises:
        DataError: The first line is not a JSON object, or the file is damaged or empty.
        ValueError: The form of the file is unknown.
    """
    for place, raw in _opened(Path(path)):
        try:
            return frozenset(json_row(raw))
        except DataError as error:
            raise error.at(place) from error.__cause__
    raise DataError("file", "empty", "give one with at least one row.", str(path))


def text_field(row: Row, field: str) -> str:
    """Return the text in a field: a string that is not blank, and without half a surrogate pair (for tokenizers)."""
    value = row.get(field)
    if value is None:
        raise DataError(field, "missing", f"the row has {', '.join(map(repr, row)) or 'no fields'}.")
    if not isinstance(value, str):
        raise DataError(field, "not a string", f"got {type(value).__name__} {value!r:.60}; give a string.")
    if not value.strip():
        raise DataError(field, "empty", "give a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(field, "half a character", f"{value[error.start : error.end]!r}; write it whole.") from error
    return value


def id_field(row: Row, field: str) -> str:
    """Return the id in a field, as a string; a whole number is an id, too."""
    value = row.get(field)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text_field(row, field)


def number_field(row: Row, field: str) -> float:
    """Return the finite number in a field; a string may hold it."""
    value = row.get(field)
    try:
        result = math.nan if isinstance(value, bool) else float(cast("Any", value))
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise DataError(field, "not a number", f"got {value!r:.60}; give a finite number.")
    return result


def pyarrow_parquet() -> Any:
    """Import ``pyarrow.parquet``; an ImportError gives the install command."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'e2rank-st[train]'") from error


@contextmanager
def _damage(name: str | Path) -> Iterator[None]:
    """Turn a library's error about the content of a file into one that names the file."""
    try:
        yield
    except DataError:
        raise
    # pyarrow's ArrowInvalid is a ValueError. The error for a missing or unreadable file is clear already.
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise DataError("file", "damaged", f"{error}; fetch or write it again.", str(name)) from error


def _opened(path: Path) -> Iterator[tuple[str, bytes | Row]]:
    """Yield place and content of each row: a line to be parsed, or the fields themselves."""
    for ending, read in ROW_FILES.items():
        if path.name.endswith(ending):
            return read(path)
    raise ValueError(f"The form of {path} is unknown; its name must end in {', '.join(ROW_FILES)}.")


def numbered_lines(file: Iterable[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """Yield place and content of each line that is not blank."""
    lines, line = iter(file), 0
    while True:
        with _damage(name):
            raw = next(lines, None)
        if raw is None:
            return
        line += 1
        raw = raw.removeprefix(BYTE_ORDER_MARK) if line == 1 else raw
        if raw.strip():
            yield f"{name}:{line}", raw


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with cast("BinaryIO", (gzip.open if path.name.endswith(".gz") else open)(path, "rb")) as file:
        yield from numbered_lines(file, str(path))


def _separated(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield place and fields of each line under a header; a short line lacks its last fields."""
    header: list[str] = []
    for place, raw in _lines(path):
        fields = decoded(raw).rstrip("\r\n").split("\t")
        if header:
            yield place, dict(zip(header, fields, strict=False))
        else:
            header = fields


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield place and fields of each row. The file is memory-mapped, so only one batch is decoded at a time."""
    library = pyarrow_parquet()
    path.stat()  # for a missing file, Python's message is clearer than Arrow's
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


def json_row(raw: bytes | Row) -> Row:
    """Return the fields of a JSON line; a row that is parsed already stays as it is."""
    if not isinstance(raw, bytes):
        return raw
    try:
        value = json.loads(decoded(raw))
    except json.JSONDecodeError as error:
        raise DataError("line", "not JSON", f"{error.msg} at column {error.colno}; write an object a line.") from error
    if not isinstance(value, dict):
        raise DataError("line", "not a JSON object", f"got {type(value).__name__}; write an object a line.")
    return value


def decoded(raw: bytes) -> str:
    """Return the text of a line in UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        advice = "unpack the file with gunzip or zcat" if raw.startswith(GZIP_MAGIC) else "convert the file"
        raise DataError("line", "not UTF-8", f"{error.reason} at byte {error.start}; {advice}.") from error


# Ending of a file's name → reader of its rows.
ROW_FILES: Mapping[str, Callable[[Path], Iterator[tuple[str, bytes | Row]]]] = {
    ".parquet": _parquet,
    ".jsonl": _lines,
    ".jsonl.gz": _lines,
    ".tsv": _separated,
}
