"""Result files of the evaluations → rows that tables and figures are made of.

A file of ``run_reranking.py`` holds several systems on one task, a file of ``run_mteb.py`` one mode on one task. Here
both become a row for each system and task.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from e2rank_st.evaluation.significance import compare

__all__ = ["LOCAL", "MTEB_REFERENCE", "PARTIAL", "Row", "check_complete", "marked", "read_rows", "titled"]

LOCAL, PARTIAL = "†", "‡"  # behind the name of a task
MTEB_REFERENCE = "embedding"  # the mode that the others are compared with


@dataclass(frozen=True)
class Row:
    """A system on a task.

    Attributes:
        benchmark: ``reranking`` or ``mteb``: what can stand in one table.
        task: Name of the task.
        column: What tables call it, with its first stage.
        model: Name of the model; empty for the first stage.
        system: Name of the system.
        scores: Metrics from 0 to 1; ``main`` is the task's main one.
        kind: What the system does.
        num_prompt_documents: K, for a listwise system.
        interval: Confidence interval of the main score, if there is one.
        per_query: nDCG@10 by query, if it was recorded; by MTEB it is for all tasks that search, and for no others.
        latency: ``stored`` and ``fresh``: median and 95th percentile in milliseconds, if they were measured.
        tokens: Median that went through the model for a query.
        comparison: Against another system, see :class:`metrics.Comparison`.
        queries: How many there are; 0 if that is not known.
        local: Whether the data was local.
        partial: Whether some queries were left out.
        result: All that its file says.
    """

    benchmark: str
    task: str
    column: str
    model: str
    system: str
    scores: Mapping[str, float]
    kind: str = ""
    num_prompt_documents: int | None = None
    interval: tuple[float, float] | None = None
    per_query: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, Mapping[str, float] | None] = field(default_factory=dict)
    tokens: float | None = None
    comparison: Mapping[str, Any] | None = None
    queries: int = 0
    local: bool = False
    partial: bool = False
    result: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def revision(self) -> str:
        """Which state of the model this is; empty for the first stage."""
        if not self.model:
            return ""
        described = [self.result["model"]] if self.benchmark == "mteb" else self.result["models"].values()
        return str({model["name"]: model["revision"] for model in described}[self.model])


def read_rows(paths: Iterable[str | os.PathLike[str]]) -> list[Row]:
    """Read result files, or all of a folder and the folders in it.

    Rows come in the order of the paths, those of a folder in the order of the file names.

    Raises:
        FileNotFoundError: A path is not there, or a folder holds no results.
        ValueError: A file is no result, or two files hold the same system on the same task.
    """
    rows: list[Row] = []
    for path in map(Path, paths):
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"{path} holds no result files (*.json); run an evaluation into it first.")
        for file in files:
            rows.extend(_read(file))
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        key = (row.benchmark, row.column, row.model, row.system)
        if key in seen:
            raise ValueError(
                f"Two files hold {row.system} of {row.model or 'no model'} on {row.column}; leave one of them out."
            )
        seen.add(key)
    return _compared(rows)


def _read(path: Path) -> list[Row]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return _from_reranking(result) if result.get("benchmark") == "reranking" else _from_mteb(result)
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no result of run_reranking.py or run_mteb.py ({error!r}); move it away."
        ) from error


def _from_reranking(result: Mapping[str, Any]) -> list[Row]:
    """The rows of a file of ``run_reranking.py``."""
    models = {role: model["name"] for role, model in result["models"].items()}
    rows = []
    for name, system in result["systems"].items():
        role = "baseline" if name.startswith("baseline_") else "cross_encoder" if name == "cross_encoder" else "model"
        rows.append(
            Row(
                benchmark="reranking",
                task=result["task"],
                column=f"{result['title']} {result['first_stage']}",
                model="" if name == "first_stage" else models[role],
                system=name,
                scores={**system["scores"], "main": system["scores"][result["main_metric"]]},
                kind=system["settings"]["kind"],
                num_prompt_documents=system["settings"].get("num_prompt_documents"),
                interval=tuple(system["interval"]),
                per_query=system["per_query"][result["main_metric"]],
                latency=system["latency"],
                tokens=(system["tokens"] or {}).get("median"),
                comparison=system.get("comparison"),
                queries=result["queries"],
                local=result["local"],
                partial=result["partial"],
                result=result,
            )
        )
    return rows


def _from_mteb(result: Mapping[str, Any]) -> list[Row]:
    """The row of a file of ``run_mteb.py``: one task in one mode; one metric is there by query, where any is."""
    per_query: dict[str, float] = next(iter(result["per_query"].values()), {})
    return [
        Row(
            benchmark="mteb",
            task=result["task"],
            column=result["task"],
            model=result["model"]["name"],
            system=result["mode"],
            scores={**result["scores"], "main": result["main_score"]},
            kind="listwise" if result["mode"] == "two-stage" else result["mode"],
            per_query=per_query,
            queries=len(per_query),
            local=result["local"],
            partial=result["partial"],
            result=result,
        )
    ]


def _compared(rows: Sequence[Row]) -> list[Row]:
    """Compare modes of MTEB that have scores by query; reranking results have their comparisons."""
    references = {
        (row.task, row.model): row for row in rows if row.benchmark == "mteb" and row.system == MTEB_REFERENCE
    }
    found = []
    for row in rows:
        reference = references.get((row.task, row.model)) if row.benchmark == "mteb" else None
        if reference is None or reference is row or not row.per_query or not reference.per_query:
            found.append(row)
            continue
        found.append(replace(row, comparison=compare(reference.system, row.per_query, reference.per_query)._asdict()))
    return found


def marked(*rows: Row) -> str:
    """Name of the task of rows, with the marks that any of them has."""
    flags = ((LOCAL, any(row.local for row in rows)), (PARTIAL, any(row.partial for row in rows)))
    return " ".join([rows[0].column, *(mark for mark, there in flags if there)])


def titled(row: Row, rows: Sequence[Row]) -> str:
    """A system's name; with its model's where several models have such a system."""
    models = {other.model for other in rows if other.system == row.system}
    if len(models) == 1:
        return row.system
    short = {model: model.rpartition("/")[2] for model in models}
    return f"{row.system} ({short[row.model] if len(set(short.values())) == len(models) else row.model})"


def check_complete(rows: Sequence[Row], tasks: Iterable[str] = ()) -> None:
    """Check that no task, and no system on a task, is missing.

    Args:
        rows: All rows.
        tasks: Names of tasks that have to be there.

    Raises:
        ValueError: Something is missing; the message names it.
    """
    missing = [task for task in tasks if task not in {row.task for row in rows}]
    if missing:
        raise ValueError(f"No results for {', '.join(missing)}; run the evaluation on them, or leave them out.")
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        part = [row for row in rows if row.benchmark == benchmark]
        there = {(row.column, row.model, row.system) for row in part}
        gaps = [
            f"{system} of {model or 'the first stage'} on {column}"
            for column in dict.fromkeys(row.column for row in part)
            for model, system in dict.fromkeys((row.model, row.system) for row in part)
            if (column, model, system) not in there and not (benchmark == "mteb" and _alike(part, column, system))
        ]
        if gaps:
            raise ValueError(f"No results for {'; '.join(gaps)}. Run them, or report these files apart.")


def _alike(rows: Sequence[Row], column: str, system: str) -> bool:
    """Whether a mode of MTEB makes no difference to a task: it does not search, so it was run in one mode only."""
    return system != MTEB_REFERENCE and not any(row.per_query for row in rows if row.column == column)
