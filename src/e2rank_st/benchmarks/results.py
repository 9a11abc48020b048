"""Results: the one form that both runners write, and that tables, figures, cards and submissions read.

A file holds a :class:`Result`: some systems on one task. Tables and figures show :class:`Entry` values: one for each
system on each task.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from e2rank_st.evaluation.significance import compare
from e2rank_st.storage import read_json, write_json

__all__ = [
    "LOCAL",
    "MTEB_REFERENCE",
    "PARTIAL",
    "Entry",
    "Result",
    "SystemResult",
    "column_with_marks",
    "read_entries",
    "titled",
]

FORMAT = 2
LOCAL, PARTIAL = "†", "‡"  # behind the name of a task
MTEB_REFERENCE = "embedding"  # the mode that the other one is compared with


@dataclass(frozen=True)
class SystemResult:
    """How a system did on a task.

    Attributes:
        kind: ``first_stage``, ``embedding``, ``rocchio``, ``listwise``, ``fused`` or ``cross_encoder``.
        model: Its key in :attr:`Result.models`; empty for the first stage.
        parameters: Its settings, those that the model decides among them.
        scores: Means over queries by metric, from 0 to 1.
        per_query: nDCG@10 by query; empty for a task that does not search.
        interval: Confidence interval of the main score, if it was computed.
        latency: ``stored`` and ``fresh``, with and without stored vectors: median and 95th percentile in milliseconds.
        tokens: Median and 95th percentile of the tokens that a query sent through the model.
        comparison: The fields of :class:`~e2rank_st.evaluation.significance.Comparison`.
    """

    kind: str
    model: str
    parameters: Mapping[str, Any]
    scores: Mapping[str, float]
    per_query: Mapping[str, float] = field(default_factory=dict)
    interval: Sequence[float] | None = None
    latency: Mapping[str, Mapping[str, float] | None] = field(default_factory=dict)
    tokens: Mapping[str, float] | None = None
    comparison: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Result:
    """Systems on a task, and everything that their scores depend on.

    Attributes:
        benchmark: ``reranking`` or ``mteb``; entries of one benchmark can stand in one table.
        task: Name of the task.
        title: Its name in tables.
        main_metric: The metric that tables show first.
        models: By role (``model``, ``baseline``, ``cross_encoder``): ``name``, ``revision``, ``prompts`` and more.
        sources: The state of each file, folder or data set that was read.
        systems: The systems by name.
        settings: The options that the scores depend on.
        environment: Versions and hardware.
        first_stage: Name of the first stage, with ``-published`` where the paper's setting was measured; empty where
            the model searches the corpus of the task.
        local: Whether the data was read from local files. ``mteb_run`` sets it for a data folder, ``first_stages`` for
            files and folders of the user's own. ``submission`` refuses such a result.
        partial: Whether some of the queries were left out. ``mteb_run`` sets it for a limit, ``Candidates.limited`` if
            it leaves any out. Cards and ``submission`` refuse such a result.
        queries: How many queries there are; 0 where no scores by query are known.
        candidates: Most candidates of a query; 0 where the corpus is searched.
        seconds: Wall-clock time.
        mteb: ``result``, as MTEB writes it.
    """

    benchmark: str
    task: str
    title: str
    main_metric: str
    models: Mapping[str, Mapping[str, Any]]
    sources: Mapping[str, str]
    systems: Mapping[str, SystemResult]
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    first_stage: str = ""
    local: bool = False
    partial: bool = False
    queries: int = 0
    candidates: int = 0
    seconds: float = 0.0
    mteb: Mapping[str, Any] | None = None

    @property
    def column(self) -> str:
        """Task and first stage, as tables call them."""
        return f"{self.title} {self.first_stage}".strip()

    def write(self, path: Path) -> None:
        """Write a result file, whole or not at all.

        Raises:
            ValueError: A number is NaN or infinite.
            OSError: The file cannot be written.
        """
        write_json(path, {"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a result file.

        Raises:
            ValueError: The file is not a result, or of another format.
            OSError: The file cannot be read.
        """
        content = read_json(path)
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError(f"{path} is not a result of e2rank eval. Move it away, or name the result files.")
        if (found := content.pop("format")) != FORMAT:
            raise ValueError(f"{path} has the format {found}; this version reads format {FORMAT}. Evaluate again.")
        try:
            systems = {name: SystemResult(**system) for name, system in content.pop("systems").items()}
            return cls(systems=systems, **content)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is a damaged result ({error}). Evaluate again.") from error


@dataclass(frozen=True)
class Entry:
    """A system on a task: a line of a table.

    Attributes:
        result: Where it is from.
        system: How it did.
    """

    result: Result
    name: str
    system: SystemResult

    @property
    def column(self) -> str:
        """Task and first stage, as tables call them."""
        return self.result.column

    @property
    def model(self) -> str:
        """Name of the model; empty for the first stage."""
        return self._of_model("name")

    @property
    def revision(self) -> str:
        """State of the model; empty for the first stage."""
        return self._of_model("revision")

    @property
    def main(self) -> float:
        """The main score."""
        return self.system.scores[self.result.main_metric]

    def _of_model(self, name: str) -> str:
        return str(self.result.models[self.system.model][name]) if self.system.model else ""


def read_entries(paths: Iterable[str | os.PathLike[str]]) -> list[Entry]:
    """Read result files, or all of a folder and the folders in it.

    Entries come in the order of the paths, those of a folder in the order of the file names. MTEB's two modes are in
    two files, so they are compared here.

    Raises:
        FileNotFoundError: A path is not there, or a folder holds no results.
        ValueError: A file is not a result, or two files hold the same system on the same task.
    """
    entries: list[Entry] = []
    for path in map(Path, paths):
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"{path} holds no result files (*.json); run an evaluation into it first.")
        for result in map(Result.read, files):
            entries += [Entry(result, name, system) for name, system in result.systems.items()]
    seen: set[tuple[str, ...]] = set()
    for entry in entries:
        key = (entry.result.benchmark, entry.column, entry.model, entry.name)
        if key in seen:
            raise ValueError(
                f"Two files hold {entry.name} of {entry.model or 'no model'} on {entry.column}; leave one of them out."
            )
        seen.add(key)
    references = {
        (entry.result.task, entry.model): entry
        for entry in entries
        if entry.result.benchmark == "mteb" and entry.name == MTEB_REFERENCE
    }
    return [_compared(entry, references.get((entry.result.task, entry.model))) for entry in entries]


def _compared(entry: Entry, reference: Entry | None) -> Entry:
    """Compare a mode of MTEB with the reference, where both have scores by query."""
    if entry.result.benchmark != "mteb" or reference is None or reference is entry:
        return entry
    if not entry.system.per_query or not reference.system.per_query:
        return entry
    found = compare(reference.name, entry.system.per_query, reference.system.per_query)
    return replace(entry, system=replace(entry.system, comparison=found._asdict()))


def column_with_marks(*entries: Entry) -> str:
    """Name of the task of some entries, with the marks that any of them has."""
    local, partial = (any(getattr(entry.result, flag) for entry in entries) for flag in ("local", "partial"))
    return " ".join([entries[0].column, *([LOCAL] if local else []), *([PARTIAL] if partial else [])])


def titled(entry: Entry, entries: Sequence[Entry]) -> str:
    """A system's name; with its model's where several models have such a system."""
    models = {other.model for other in entries if other.name == entry.name}
    if len(models) == 1:
        return entry.name
    short = {model: model.rpartition("/")[2] for model in models}
    return f"{entry.name} ({short[entry.model] if len(set(short.values())) == len(models) else entry.model})"
