"""A data file → its rows, one at a time; a bad row is refused with its place, or counted.

Memory does not grow with the file: JSON lines and tab-separated values are read by line, parquet in small batches.
The parser of a row reports the problem, and the reading loop here adds the place. The functions for a field or line
raise DataError unless it holds what they return.

JSON is taken strictly: Python's own reader lets NaN and half characters in, and keeps the last of two equal names. For
huge numbers and deep lists it raises errors of its own.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar, cast

__all__ = [
    "BYTE_ORDER_MARK",
    "ROW_FILES",
    "DataError",
    "Row",
    "column_sets",
    "decoded",
    "distinct_names",
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
DEEPEST = 100  # lists within lists; Python's own limit depends on the caller
TOO_DEEP = f"lists and objects may be {DEEPEST} deep; write flat ones."
# What gzip and pyarrow raise for a damaged file.
DAMAGE = (EOFError, zlib.error, OSError, ValueError, ArithmeticError, LookupError, MemoryError, NotImplementedError)
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


Unparsed: TypeAlias = bytes | Row | DataError


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


def column_sets(path: str | os.PathLike[str], *, skip_bad_rows: bool = False) -> Iterator[frozenset[str]]:
    """Yield the names of the columns of each row.

    Args:
        path: A file with an ending of :data:`ROW_FILES`.
        skip_bad_rows: Leave rows out that are not JSON objects.

    Raises:
        DataError: A line is not a JSON object, the file is damaged, or no row is left.
        ValueError: The form of the file is unknown.
    """
    names = None
    for place, raw in _opened(Path(path)):
        try:
            names = frozenset(json_row(raw))
        except DataError as error:
            if not skip_bad_rows:
                raise error.at(place) from error.__cause__
        else:
            yield names
    if names is None:
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
    except (TypeError, ValueError, ArithmeticError):
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
    except DataError as error:
        raise (error if error.place else error.at(str(name))) from error.__cause__
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own errors are clear already
        raise DataError("file", "damaged", f"{error}; fetch or write it again.", str(name)) from error


def _opened(path: Path) -> Iterator[tuple[str, Unparsed]]:
    """Yield place and content of each row: a line to be parsed, the fields themselves, or why it cannot be read."""
    for ending, read in ROW_FILES.items():
        if path.name.lower().endswith(ending):
            return read(path)
    raise ValueError(f"The form of {path} is unknown; its name must end in {', '.join(ROW_FILES)}.")


def numbered_lines(file: Iterable[bytes], name: str, *, blank: bool = False) -> Iterator[tuple[str, bytes]]:
    """Yield place and content of each line; without ``blank``, only of those that are not blank."""
    lines, line = iter(file), 0
    while True:
        with _damage(name):
            raw = next(lines, None)
        if raw is None:
            return
        line += 1
        raw = raw.removeprefix(BYTE_ORDER_MARK) if line == 1 else raw
        if blank or raw.strip():
            yield f"{name}:{line}", raw


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with cast("BinaryIO", (gzip.open if path.name.endswith(".gz") else open)(path, "rb")) as file:
        yield from numbered_lines(file, str(path))


def _separated(path: Path) -> Iterator[tuple[str, Row | DataError]]:
    """Yield place and fields of each line under a header; a short line lacks its last fields."""
    header: list[str] = []
    for place, raw in _lines(path):
        try:
            fields = decoded(raw).rstrip("\r\n").split("\t")
            if not header:
                header = distinct_names(fields)
                continue
            if len(fields) > len(header):
                raise DataError("line", "too many fields", f"got {len(fields)}, and the header has {len(header)}.")
            yield place, dict(zip(header, fields, strict=False))
        except DataError as error:
            if not header:
                raise error.at(place) from error.__cause__
            yield place, error


class _ParquetRow(Mapping[str, Any]):
    """A row of a batch. A field is converted when it is asked for, so that only fields in use can be bad."""

    def __init__(self, batch: Any, number: int) -> None:
        self._batch, self._number = batch, number

    def __getitem__(self, field: str) -> Any:
        value = self._batch.column(field)[self._number]  # KeyError: the column is missing
        try:
            return value.as_py()
        # Half a character, a date beyond Python's, nanoseconds, and (a LookupError of pytz) an unknown time zone.
        except (ValueError, ArithmeticError, LookupError) as error:
            raise DataError(field, "cannot be read", f"{error}; write it as text, numbers or lists.") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch.schema.names)

    def __len__(self) -> int:
        return int(self._batch.num_columns)


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield place and fields of each row. The file is memory-mapped, so only one batch is decoded at a time."""
    library = pyarrow_parquet()
    path.stat()  # for a missing file, Python's message is clearer than Arrow's
    with _damage(path):
        file = library.ParquetFile(path, memory_map=True)
    with file:
        with _damage(path):
            distinct_names(file.schema_arrow.names)
            batches, row = file.iter_batches(batch_size=BATCH_ROWS), 0
        while True:
            with _damage(path):
                batch = next(batches, None)
            if batch is None:
                return
            for number in range(batch.num_rows):
                row += 1
                yield f"{path}:row {row}", _ParquetRow(batch, number)


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return the names of a header's columns, or raise DataError if one appears twice."""
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise DataError("header", "a column twice", f"got {twice[0]!r:.60} twice; rename one.")
    return list(names)


def json_row(raw: Unparsed) -> Row:
    """Return the fields of a JSON line; a row that is parsed already stays as it is, and an error is raised."""
    if isinstance(raw, DataError):
        raise raw
    if not isinstance(raw, bytes):
        return raw
    text = decoded(raw)
    try:
        value = _decoded(text)
    except json.JSONDecodeError as error:
        raise DataError("line", "not JSON", f"{error.msg} at column {error.colno}; write an object a line.") from error
    except RecursionError as error:
        raise DataError("line", "too deep", TOO_DEEP) from error
    if not isinstance(value, dict):
        raise DataError("line", "not a JSON object", f"got {type(value).__name__}; write an object a line.")
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        raise DataError("line", "too deep", TOO_DEEP)
    if "\\ud" in text or "\\uD" in text:
        _check_values(value)
    return value


def _decoded(text: str) -> Any:
    try:
        return _JSON.decode(text)
    except OverflowError:
        value = json.loads(text, parse_int=float, object_pairs_hook=_json_object)  # once more, to find the field
        _check_values(value if isinstance(value, dict) else {"line": value})
        raise


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise DataError("line", "a name twice", f"got {twice!r:.60} twice in an object; give it once.")
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise OverflowError
    return number


def _integer(text: str) -> int:
    _finite(text)  # Python neither converts some thousand digits nor writes them
    return int(text)


_JSON = json.JSONDecoder(
    object_pairs_hook=_json_object, parse_float=_finite, parse_int=_integer, parse_constant=_finite
)


def _depth(value: object) -> int:
    """How many lists and objects are within each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth


def _check_values(fields: Row) -> None:
    """Refuse what JSON cannot express, with the name of its field."""
    for name, value in fields.items():
        field = ascii(name)[1:-1]
        try:
            json.dumps({name: value}, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start : error.end])
            raise DataError(field, "half a character", f"{half}; write it whole.") from error
        except ValueError as error:
            advice = "got NaN, infinity or a number that is too large; give a finite number, or null."
            raise DataError(field, "not a number", advice) from error


def decoded(raw: bytes) -> str:
    """Return the text of a line in UTF-8."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        advice = "unpack the file with gunzip or zcat" if raw.startswith(GZIP_MAGIC) else "convert the file"
        raise DataError("line", "not UTF-8", f"{error.reason} at byte {error.start}; {advice}.") from error
    if "\0" in text:
        raise DataError("line", "a null byte", "the file is not text in UTF-8; convert the file.")
    return text


# Ending of a file's name → reader of its rows.
ROW_FILES: Mapping[str, Callable[[Path], Iterator[tuple[str, Unparsed]]]] = {
    ".parquet": _parquet,
    ".jsonl": _lines,
    ".jsonl.gz": _lines,
    ".tsv": _separated,
}
