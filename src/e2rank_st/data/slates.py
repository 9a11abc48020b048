"""Query, documents and labels → a validated slate; slates → a parquet file with its manifest, and back.

A listwise model learns from slates. A slate holds a query, its documents, and their labels; a higher label is better.
It checks itself, because a bad slate in a batch would silently give wrong training.
"""

from __future__ import annotations

import importlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from e2rank_st.data.files import DataError, Row, number_field, parse_rows, pyarrow_parquet, text_field
from e2rank_st.storage import file_sha256, read_json, replacing

__all__ = [
    "DataError",
    "Manifest",
    "Slate",
    "list_field",
    "read_manifest",
    "read_slates",
    "source_field",
    "text_list",
    "write_slates",
]

LARGEST_LABEL = 3e38  # losses compare them in float32, where a larger one is infinite: not a document at all
GROUP_SLATES, GROUP_CHARACTERS = 1024, 2**23  # limits of a row group; one group is in memory at a time


@dataclass(frozen=True)
class Slate:
    """A query, N documents, and their labels.

    Attributes:
        query: The query.
        documents: N documents. A text may appear twice, as in lists of real search engines; see :meth:`distinct`.
        labels: A number for each document, or None for an unjudged one. Higher is better; equal labels are ties.
        gold: For each document, whether people judged it a positive. This is independent of its label, which may come
            from a teacher. By default, no document is gold.
        source: Name of the data set, for batches of a single source.

    Raises:
        DataError: The query or a document is empty, documents are missing, the lengths differ, or a label is not a
            finite number.
    """

    query: str
    documents: tuple[str, ...]
    labels: tuple[float | None, ...]
    gold: tuple[bool, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        """Check all fields, and turn lists into tuples."""
        text_field({"query": self.query}, "query")
        documents = text_list("documents", self.documents)
        labels = tuple(_label(label) for label in list_field("labels", self.labels))
        gold = tuple(_flag(flag) for flag in list_field("gold", self.gold)) or (False,) * len(documents)
        for name, values in (("labels", labels), ("gold", gold)):
            if len(values) != len(documents):
                raise DataError(name, "lengths differ", f"got {len(values)} for {len(documents)} documents.")
        if not isinstance(self.source, str):
            raise DataError("source", "not a string", f"got {self.source!r:.60}; give a name or an empty string.")
        if self.source.strip():
            text_field({"source": self.source}, "source")
        for name, value in (("documents", documents), ("labels", labels), ("gold", gold)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Number of documents, N."""
        return len(self.documents)

    def first(self, depth: int) -> Slate:
        """Return this slate with its first documents only, at most ``depth``.

        Raises:
            ValueError: ``depth`` is not a whole number of at least 1.
        """
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ValueError(f"depth must be a whole number of at least 1, got {depth!r}.")
        return replace(self, documents=self.documents[:depth], labels=self.labels[:depth], gold=self.gold[:depth])

    def distinct(self) -> Slate:
        """Return this slate with each text once, at its first place.

        Copies of a passage would be preferred to each other, take several places in a prompt, and count several times.
        A text gets the best of its labels, and it is gold if one of its copies is gold.
        """
        places: dict[str, list[int]] = {}
        for place, document in enumerate(self.documents):
            places.setdefault(document, []).append(place)
        judged = ([self.labels[place] for place in group] for group in places.values())
        return Slate(
            self.query,
            tuple(places),
            tuple(max((label for label in labels if label is not None), default=None) for labels in judged),
            tuple(any(self.gold[place] for place in group) for group in places.values()),
            self.source,
        )


@dataclass(frozen=True)
class Manifest:
    """The origin of a file of slates; it is saved beside the file as ``{name}.manifest.json``.

    Attributes:
        source: The data that the slates were made from.
        base_model: The model that mined the candidates, or None.
        seed: The seed of random draws, or None.
        settings: All further settings, as JSON values.
        counts: Numbers of slates, documents, judged and gold documents, and of slates by source. Counted while writing.
        sha256: Hash of the file, taken while writing.
    """

    source: str
    base_model: str | None = None
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""


def write_slates(path: str | os.PathLike[str], slates: Iterable[Slate], manifest: Manifest) -> Manifest:
    """Write slates as parquet, and their manifest beside it. Both are written whole, or not at all.

    Slates are taken one by one and written by row groups, so memory does not grow with their number. The same slates
    give the same bytes.

    Args:
        path: A file name that ends in ``.parquet``.
        slates: At least one slate.
        manifest: Their origin.

    Returns:
        The manifest as written, with ``counts`` and ``sha256``.

    Raises:
        ValueError: The name has a different ending, or slates are missing. After any error, nothing is written.
        TypeError: The manifest's settings cannot be written as JSON.
    """
    path = Path(path)
    if path.suffix != ".parquet":
        raise ValueError(f"Slates are written as parquet, got {path.name!r}; give a name that ends in '.parquet'.")
    json.dumps(asdict(manifest))  # fail before hours of mining, not after them
    with replacing(path.with_suffix(".manifest.json")) as described, replacing(path) as fresh:
        counts = _write(fresh, slates)
        if not counts["slates"]:
            raise ValueError(f"Got no slates for {path}; check their source.")
        manifest = replace(manifest, counts=counts, sha256=file_sha256(fresh))
        described.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    return manifest


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a file of slates.

    Raises:
        FileNotFoundError: The manifest is missing.
        ValueError: The manifest is damaged.
    """
    path = Path(path).with_suffix(".manifest.json")
    try:
        return Manifest(**read_json(path))
    except (TypeError, ValueError) as error:
        raise ValueError(f"The manifest {path} is damaged ({error}); write the slates again.") from error


def read_slates(
    path: str | os.PathLike[str], *, source: str | None = None, skip_bad_rows: bool = False
) -> Iterator[Slate]:
    """Read slates from a file of :func:`write_slates`, or from JSON lines with these fields; ``gold`` may be missing.

    Args:
        path: The file.
        source: A name for all slates instead of their own.
        skip_bad_rows: Leave bad rows out and log their number, instead of refusing the file.

    Raises:
        DataError: A row is bad; the message names file, row, field and reason.
    """

    def parse(row: Row) -> Slate:
        documents, labels = (tuple(list_field(name, row.get(name))) for name in ("documents", "labels"))
        gold = () if row.get("gold") is None else tuple(list_field("gold", row["gold"]))
        return Slate(text_field(row, "query"), documents, labels, gold, source_field(row) if source is None else source)

    return parse_rows(path, parse, skip_bad_rows=skip_bad_rows)


def source_field(row: Row, default: str = "") -> Any:
    """Return a row's source, which the slate checks, or a default if it has none."""
    found = row.get("source")
    return default if found is None or found == "" else found


def list_field(name: str, values: Any) -> Sequence[Any]:
    """Return the list in a field, unchanged, or raise DataError."""
    if values is None:
        raise DataError(name, "missing", "give a list.")
    if not isinstance(values, (list, tuple)):
        raise DataError(name, "not a list", f"got {type(values).__name__} {values!r:.60}; give a list.")
    return values


def text_list(name: str, values: Any) -> tuple[str, ...]:
    """Return the documents in a field, at least one and none blank, or raise DataError."""
    documents = list_field(name, values)
    if not documents:
        raise DataError(name, "empty", "give at least one document.")
    for place, document in enumerate(documents):
        try:
            text_field({name: document}, name)
        except DataError as error:
            problem = f"a text is {error.problem}"
            raise DataError(name, problem, f"number {place + 1}: {error.detail}") from error.__cause__
    return tuple(documents)


def _label(label: Any) -> float | None:
    if label is None:
        return None
    if isinstance(label, (str, bytes)):
        raise DataError("labels", "not a number", f"got {label!r:.60}; give a number, or None if it is unjudged.")
    number = number_field({"labels": label}, "labels")
    if abs(number) > LARGEST_LABEL:
        raise DataError("labels", "too large", f"got {number:g}; give a number up to {LARGEST_LABEL:g}.")
    return number


def _flag(flag: Any) -> bool:
    if flag not in (True, False):
        raise DataError("gold", "not a flag", f"got {flag!r:.60}; give true or false for each document.")
    return bool(flag)


def _write(path: Path, slates: Iterable[Slate]) -> dict[str, Any]:
    """Write a parquet file by row groups, and count its contents."""
    parquet, arrow = pyarrow_parquet(), importlib.import_module("pyarrow")
    text, texts = arrow.string(), arrow.list_(arrow.string())
    labels, gold = arrow.list_(arrow.float64()), arrow.list_(arrow.bool_())
    schema = arrow.schema({"query": text, "documents": texts, "labels": labels, "gold": gold, "source": text})
    counts, sources = Counter({"slates": 0, "documents": 0, "judged": 0, "gold": 0}), Counter[str]()
    with parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(slates):
            writer.write_table(arrow.Table.from_pylist([vars(slate) for slate in group], schema))
            for slate in group:
                judged = sum(label is not None for label in slate.labels)
                counts.update(slates=1, documents=len(slate), judged=judged, gold=sum(slate.gold))
                sources[slate.source] += 1
    return {**counts, "sources": dict(sorted(sources.items()))}


def _groups(slates: Iterable[Slate]) -> Iterator[list[Slate]]:
    """Split slates into row groups of bounded number and text length."""
    group: list[Slate] = []
    characters = 0
    for slate in slates:
        group.append(slate)
        characters += sum(map(len, slate.documents))
        if len(group) == GROUP_SLATES or characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group
