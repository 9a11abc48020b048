"""Documents as people have them → records with an id, a text, perhaps a title, and further fields.

An id is the user's own, or a hash of title and text. The same text is then the same document.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from e2rank_st.data.documents import iter_documents
from e2rank_st.data.files import DataError, id_field, text_field

__all__ = ["Record", "entries", "grouped", "number_of", "plain_value", "records"]

ID_NAMES = ("id", "_id")  # the second is BEIR's
OWN_NAMES = frozenset({*ID_NAMES, "text", "title", "vector"})
MOST_CHARACTERS = 2**22  # in a group
LONGEST_NAME = 200
UNSUITABLE = ".`\0"  # a dot means a part of a field in filters, and a backtick ends a name


@dataclass(frozen=True)
class Record:
    """A document of an index.

    Attributes:
        id: Names the document in its index.
        text: Its text.
        title: Its title, or an empty string.
        fields: Further fields: name → value. A missing value is left out.
    """

    id: str
    text: str
    title: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, document: Any) -> Record:
        """Read a text, or a mapping with ``text`` and perhaps ``id`` (or ``_id``), ``title`` and further fields.

        Raises:
            DataError: It is something else, or a field cannot be stored.
        """
        if isinstance(document, Record):
            return document
        row = {"text": document} if isinstance(document, str) else document
        if not isinstance(row, Mapping):
            raise DataError("document", "of an unknown kind", f"got {type(row).__name__}; give a text or a mapping.")
        text, title = _text(row, "text"), "" if _missing(row.get("title")) else _text(row, "title")
        name = next((name for name in ID_NAMES if not _missing(row.get(name))), None)
        id_ = hashlib.sha256(f"{title}\0{text}".encode()).hexdigest()[:32] if name is None else id_field(row, name)
        further = {key: value for key, value in row.items() if key not in OWN_NAMES and not _missing(value)}
        for key in row:
            _check_name(key)
        return cls(id_, text, title, {key: plain_value(key, value) for key, value in further.items()})

    def as_dict(self) -> dict[str, Any]:
        """The document as a mapping that :meth:`of` reads."""
        return {**self.fields, "id": self.id, "text": self.text, "title": self.title}


def records(documents: Any) -> Iterator[Record]:
    """Read documents one at a time: those of a file or folder, or of anything that can be iterated.

    Args:
        documents: A path object, or texts, or mappings with ``text``: in a list, a generator, a column, a data set, or
            a table of pandas, polars or Arrow.

    Raises:
        ValueError: It is something else.
        DataError: A document is bad; the message names its place.
        OSError: A file cannot be read.
    """
    if isinstance(documents, os.PathLike):
        source, place = str(os.fspath(documents)), "{0}: document {1}"
        rows: Iterable[Any] = enumerate(iter_documents(source), 1)
    else:
        source, place = "", "documents[{1}]"
        rows = enumerate(entries(documents))
    for number, document in rows:
        try:
            yield Record.of(document)
        except DataError as error:
            raise (error if error.place else error.at(place.format(source, number))) from error.__cause__


def grouped(documents: Iterator[Record], size: Callable[[], int]) -> Iterator[list[Record]]:
    """Group documents, so that memory does not grow with their number: ``size()``, fewer if they are long."""
    group: list[Record] = []
    characters, most = 0, size()
    try:
        for record in documents:
            group.append(record)
            characters += len(record.text)
            if len(group) == most or characters > MOST_CHARACTERS:
                yield group
                group, characters, most = [], 0, size()
    except (ValueError, OSError):  # those before a bad one are not lost
        if group:
            yield group
        raise
    if group:
        yield group


def entries(documents: Any) -> Iterable[Any]:
    """What a list, a column, a table or anything else that can be iterated has, one at a time.

    Raises:
        ValueError: It is something else.
    """
    if hasattr(documents, "__arrow_c_stream__") and (hasattr(documents, "columns") or hasattr(documents, "schema")):
        from pyarrow import RecordBatchReader

        batches = RecordBatchReader.from_stream(documents)
        rows: Iterator[Any] = chain.from_iterable(batch.to_pylist() for batch in batches)
        return rows
    if hasattr(documents, "to_pylist"):
        column: list[Any] = documents.to_pylist()
        return column
    if not isinstance(documents, (str, bytes, Mapping, Set)):
        with suppress(TypeError):  # an array without dimensions says only here that it has no entries
            found: Iterator[Any] = iter(documents)
            return found
    raise ValueError(
        f"documents must be a list of texts or of mappings with 'text', got {type(documents).__name__}. "
        "For a file or a folder, give a pathlib.Path."
    )


def number_of(documents: Any) -> int | None:
    """How many documents there are, if something tells before they are read."""
    with suppress(TypeError, RuntimeError, AttributeError):
        return len(documents)
    return None


def _text(row: Mapping[str, Any], name: str) -> str:
    """A text that may be blank: a collection often has some empty documents."""
    value = row.get(name)
    return str(value if isinstance(value, str) and not value.strip() else text_field(row, name))


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.strip() or (name.startswith("_") and name not in ID_NAMES):
        raise DataError("field", "not a name", f"got {name!r:.60}; give a string that does not begin with '_'.")
    if name == "vector":
        raise DataError(name, "a reserved name", "the index keeps its own vectors there; rename or remove the field.")
    if len(name) > LONGEST_NAME or any(mark in name for mark in UNSUITABLE) or not name.isprintable():
        advice = f"at most {LONGEST_NAME} printable characters, without a dot or backtick; rename it."
        raise DataError(f"{name!r:.60}", "not a name of a field", advice)


def plain_value(name: str, value: Any) -> Any:
    """A value of NumPy as Python's own, and tuples as lists.

    Raises:
        DataError: A number is not finite, also inside a list or an object.
    """
    if isinstance(value, (list, tuple)):
        return [plain_value(name, item) for item in value]
    if isinstance(value, dict):
        return {key: plain_value(name, item) for key, item in value.items()}
    plain = value.item() if hasattr(value, "item") and not getattr(value, "ndim", 0) else value
    if isinstance(plain, float) and not math.isfinite(plain):
        raise DataError(name, "not a number", f"got {plain}; give a finite number, or leave it out.")
    return plain
