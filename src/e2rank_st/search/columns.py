"""Fields of documents ↔ typed columns of Arrow, so that a filter can compare them.

The first values of a field decide the type of its column. Lists and objects become JSON, which filters see as text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, datetime, timezone
from typing import Any

import pyarrow as pa

from e2rank_st.data.files import DataError

__all__ = ["column", "field_of", "values"]

JSON = {b"e2rank-st": b"json"}  # marks a column
INTEGERS = range(-(2**63), 2**63)


def field_of(name: str, given: Sequence[Any]) -> pa.Field:
    """Choose the column of a field by its first values, at least one of which is not None.

    Raises:
        DataError: The values are of different kinds, or cannot be stored.
    """
    kinds = {_kind(name, value) for value in given if value is not None}
    if kinds == {pa.int64(), pa.float64()}:
        kinds = {pa.float64()}
    if len(kinds) > 1:
        first = next(value for value in given if value is not None)
        other = next(v for v in given if v is not None and _kind(name, v) != _kind(name, first))
        raise _differ(name, other, f"and {first!r:.60}")
    (kind,) = kinds
    return pa.field(name, kind or pa.string(), metadata=None if kind else JSON)


def column(field: pa.Field, given: Sequence[Any]) -> pa.Array:
    """Make the values of a column; None stands for a missing one.

    Raises:
        DataError: A value is of a different kind than the column.
    """
    if _is_json(field):
        return pa.array([None if v is None else json.dumps(v, ensure_ascii=False, default=_unknown) for v in given])
    for value in given:
        kinds = (field.type, pa.int64()) if field.type == pa.float64() else (field.type,)
        if value is not None and _kind(field.name, value) not in kinds:
            raise _differ(field.name, value, f"where the index has {field.type}")
    return pa.array(given, field.type)


def values(field: pa.Field, array: pa.ChunkedArray) -> list[Any]:
    """Read the values of a column."""
    found: list[Any] = array.to_pylist()
    return [None if v is None else json.loads(v) for v in found] if _is_json(field) else found


def _is_json(field: pa.Field) -> bool:
    return (field.metadata or {}) == JSON


def _differ(name: str, value: Any, against: str) -> DataError:
    return DataError(name, "values of different kinds", f"got {value!r:.60} {against}; give all in the same form.")


def _kind(name: str, value: Any) -> pa.DataType | None:
    """The type of a value; None for a list or an object."""
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int) and value in INTEGERS:
        return pa.int64()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, datetime):
        return pa.timestamp("us", None if value.tzinfo is None else str(timezone.utc))
    if isinstance(value, date):
        return pa.date32()
    if isinstance(value, (list, dict)):
        json.dumps(value, ensure_ascii=False, default=lambda item: _unknown(item, name)).encode()
        return None
    raise _unstorable(name, value)


def _unknown(value: Any, name: str = "field") -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise _unstorable(name, value)


def _unstorable(name: str, value: Any) -> DataError:
    advice = f"got {type(value).__name__} {value!r:.60}; give text, numbers, truth values, dates, lists or objects."
    return DataError(name, "cannot be stored", advice)
