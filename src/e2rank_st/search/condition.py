"""A user's mapping of fields to values → the values that each field may have, checked alike for all places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from e2rank_st.search.records import plain_value

__all__ = ["FIELDS", "allowed_values"]

FIELDS = ("id", "title", "text")  # that every document has
KINDS = (str, bool, int, float, date)


def allowed_values(where: Any, fields: Iterable[str]) -> dict[str, list[Any]]:
    """Read a condition.

    Args:
        where: ``{field: value}`` or ``{field: [value, ...]}``.
        fields: The further fields that the index has.

    Returns:
        The values that each of its fields may have.

    Raises:
        ValueError: It is something else, it names a field that the index does not have, or a value is not one.
    """
    if not isinstance(where, Mapping) or not where:
        raise ValueError(f"where must be {{field: value}}, or on disk a condition in SQL; got {where!r:.80}.")
    known = [*FIELDS, *fields]
    found: dict[str, list[Any]] = {}
    for name, value in where.items():
        if name not in known:
            raise ValueError(f"where names the field {name!r:.80}; this index has {', '.join(map(repr, known))}.")
        found[name] = plain_value(name, list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value])
        if wrong := [item for item in found[name] if not isinstance(item, KINDS)]:
            advice = f"got {type(wrong[0]).__name__} {wrong[0]!r:.60}; give text, numbers, truth values or dates."
            raise ValueError(f"where gives the field {name!r:.80} a value that cannot be compared: {advice}")
    return found
