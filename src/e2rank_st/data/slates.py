"""Query, documents and labels → a validated slate; slates → a parquet file with its manifest, and back.

A slate is what a listwise model learns from: a query, its documents, and labels that say which of them are better. It
checks itself, so that nothing that would train silently wrong gets as far as a batch.
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
from e2rank_st.storage import file_sha256, replacing

__all__ = [
    "DataError",
    "Manifest",
    "Slate",
    "list_field",
    "read_manifest",
    "read_slates",
    "text_list",
    "write_slates",
]

GROUP_SLATES, GROUP_CHARACTERS = 1024, 2**23  # what a row group holds at most, and so what is in memory at once


@dataclass(frozen=True)
class Slate:
    """A query, N documents, and which of them are better.

    Attributes:
        query: The query.
        documents: N documents. A text may come twice, as lists of real search engines have it; see :meth:`distinct`.
        labels: A number for each document, higher is better, equal ones mean no preference; None for an unjudged one.
        gold: For each document, whether people are known to have judged it a positive, whatever its label says: labels
            may be a teacher's. None are, by default.
        source: Name of the data set, for batches of a single source.

    Raises:
        DataError: The query or a document is empty, there are no documents, the lengths differ, or a label is no
            finite number.
    """

    query: str
    documents: tuple[str, ...]
    labels: tuple[float | None, ...]
    gold: tuple[bool, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        """Check all fields and bring lists to tuples."""
        text_field({"query": self.query}, "query")
        documents = text_list("documents", self.documents)
        labels = tuple(_label(label) for label in list_field("labels", self.labels))
        gold = tuple(_flag(flag) for flag in list_field("gold", self.gold)) or (False,) * len(documents)
        for name, values in (("labels", labels), ("gold", gold)):
            if len(values) != len(documents):
                raise DataError(name, "lengths differ", f"got {len(values)} for {len(documents)} documents.")
        if not isinstance(self.source, str):
            raise DataError("source", "no string", f"got {self.source!r:.60}; give a name or an empty string.")
        object.__setattr__(self, "documents", documents)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "gold", gold)

    def __len__(self) -> int:
        """Number of documents, N."""
        return len(self.documents)

    def first(self, depth: int) -> Slate:
        """This slate with its first documents only, at most ``depth``.

        Raises:
            ValueError: ``depth`` is no whole number of at least 1.
        """
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ValueError(f"depth must be a whole number of at least 1, got {depth!r}.")
        return replace(self, documents=self.documents[:depth], labels=self.labels[:depth], gold=self.gold[:depth])

    def distinct(self) -> Slate:
        """This slate with each text once, at its first place.

        Passages that a corpus holds several times would otherwise be preferred to themselves, take several places in a
        prompt, and count several times. A text gets the best of its labels, and is gold if one of its copies is.
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
    """Where a file of slates comes from; it lies beside the file as ``{name}.manifest.json``.

    Attributes:
        source: What the slates were made from.
        base_model: The model that mined the candidates, if one did.
        seed: The seed of what was drawn at random, if anything was.
        settings: All other settings, as JSON has them.
        counts: Slates, documents, judged and gold documents, and slates by source; counted while writing.
        sha256: Of the file; taken while writing.
    """

    source: str
    base_model: str | None = None
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""


def write_slates(path: str | os.PathLike[str], slates: Iterable[Slate], manifest: Manifest) -> Manifest:
    """Write slates as parquet, and their manifest beside it, both whole or not at all.

    The slates are taken one by one and written by row groups, so that memory does not grow with their number. The same
    slates give the same bytes.

    Args:
        path: A file name that ends in ``.parquet``.
        slates: At least one slate.
        manifest: Where they come from; ``counts`` and ``sha256`` are filled in.

    Returns:
        The manifest as written.

    Raises:
        ValueError: The name ends otherwise, or there are no slates. Nothing is written, as with any other error.
        TypeError: The manifest's settings cannot be written as JSON.
        ImportError: pyarrow is missing.
        OSError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".parquet":
        raise ValueError(f"Slates are written as parquet, got {path.name!r}; give a name that ends in '.parquet'.")
    json.dumps(asdict(manifest))  # what cannot be written shows before hours of mining, not after them
    with replacing(_manifest_path(path)) as described, replacing(path) as fresh:
        counts = _write(fresh, slates)
        if not counts["slates"]:
            raise ValueError(f"Got no slates for {path}; check what they were read from.")
        manifest = replace(manifest, counts=counts, sha256=file_sha256(fresh))
        described.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    return manifest


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a file of slates.

    Args:
        path: The file of slates.

    Raises:
        FileNotFoundError: There is no manifest beside it.
        ValueError: The manifest is damaged.
    """
    path = _manifest_path(Path(path))
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"The manifest {path} is damaged ({error}); write the slates again.") from error


def read_slates(
    path: str | os.PathLike[str], *, source: str | None = None, skip_bad_rows: bool = False
) -> Iterator[Slate]:
    """Read slates: what :func:`write_slates` wrote, or JSON lines with the same fields; ``gold`` may be missing.

    Args:
        path: The file.
        source: A name for all of them instead of their own.
        skip_bad_rows: Leave bad rows out and log how many there were, instead of refusing the file.

    Yields:
        Slates in the order of the file, one by one.

    Raises:
        DataError: A row is bad; the message says file, row, field and reason.
        ImportError: The file is parquet and pyarrow is missing.
    """

    def parse(row: Row) -> Slate:
        documents, labels = (tuple(list_field(name, row.get(name))) for name in ("documents", "labels"))
        gold = () if row.get("gold") is None else tuple(list_field("gold", row["gold"]))
        return Slate(
            text_field(row, "query"), documents, labels, gold, row.get("source") or "" if source is None else source
        )

    return parse_rows(path, parse, skip_bad_rows=skip_bad_rows)


def list_field(name: str, values: Any) -> Sequence[Any]:
    """The list in a field, as it is.

    Raises:
        DataError: It is missing or no list.
    """
    if values is None:
        raise DataError(name, "missing", "give a list.")
    if not isinstance(values, (list, tuple)):
        raise DataError(name, "no list", f"got {type(values).__name__} {values!r:.60}; give a list.")
    return values


def text_list(name: str, values: Any) -> tuple[str, ...]:
    """The documents in a field.

    Raises:
        DataError: There are none, or one is no text or empty.
    """
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
        raise DataError("labels", "no number", f"got {label!r:.60}; give numbers, or None for an unjudged document.")
    return number_field({"labels": label}, "labels")


def _flag(flag: Any) -> bool:
    if flag not in (True, False):
        raise DataError("gold", "no flag", f"got {flag!r:.60}; give true or false for each document.")
    return bool(flag)


def _manifest_path(path: Path) -> Path:
    return path.with_suffix(".manifest.json")


def _write(path: Path, slates: Iterable[Slate]) -> dict[str, Any]:
    """Write a parquet file by row groups, and count what is in it."""
    parquet, arrow = pyarrow_parquet(), importlib.import_module("pyarrow")
    schema = arrow.schema(
        {
            "query": arrow.string(),
            "documents": arrow.list_(arrow.string()),
            "labels": arrow.list_(arrow.float64()),
            "gold": arrow.list_(arrow.bool_()),
            "source": arrow.string(),
        }
    )
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
    """Cut slates into row groups, bounded in their number and in the length of their texts."""
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
