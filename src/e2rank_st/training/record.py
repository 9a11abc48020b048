"""A finished training run → ``training.json`` and curves as a picture, to lie beside the model."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from e2rank_st.modeling_e2rank import num_positions
from e2rank_st.provenance import environment
from e2rank_st.storage import read_json, replacing, write_json

__all__ = ["TrainingRecord", "check_plotting", "described", "read_earlier", "split_log", "stages"]

PARTS = ("loss", "contrastive", "listwise", "localized", "guard")
STYLES = {"listwise": "-", "embedding": "--", "first_stage": ":"}
CURVE = re.compile(rf"(.*?)_?({'|'.join(STYLES)})_ndcg@")
JSON_NAME, CURVES_NAME = "training.json", "curves.png"


@dataclass(frozen=True)
class TrainingRecord:
    """The settings of a run, its data, and its results.

    Attributes:
        settings: The settings that are not the default.
        loss: Options of the loss.
        data: Where the data comes from, by ``train`` and ``dev``: see
            :meth:`~e2rank_st.training.datasets.DataEntry.describe`.
        log: Losses by step: ``step`` and any of ``loss, contrastive, listwise, localized, guard, learning_rate`` and
            ``grad_norm``.
        dev: Metrics of the evaluator by step, ``step`` and ``{set}_{system}_ndcg@10``, from 0, the model before.
        before: Metrics before training.
        after: Metrics of the result.
        p_values: Of the differences between after and before, by metric: paired randomisation tests over queries.
        best_step: Step of the checkpoint that was kept; None for the last one.
        steps: Steps trained.
        resumed_from: Step that the run went on from, if it was resumed.
        seconds: Wall time of training since then, evaluation included.
        earlier: The record of the run whose result this one started from, such as stage I; None if it started from a
            checkpoint, a model of the Hub or one without a record.
        environment: Versions and hardware of the run.
        model: The model, as :func:`described`.
    """

    settings: Mapping[str, Any]
    loss: Mapping[str, Any]
    data: Mapping[str, Any]
    log: Sequence[Mapping[str, float]]
    dev: Sequence[Mapping[str, float]]
    before: Mapping[str, float]
    after: Mapping[str, float]
    p_values: Mapping[str, float]
    best_step: int | None
    steps: int
    resumed_from: int | None
    seconds: float
    earlier: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] = field(default_factory=environment)
    model: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write ``training.json`` and ``curves.png``, each whole or not at all.

        Raises:
            ImportError: matplotlib is missing.
            OSError: A file cannot be written.
        """
        values = json.loads(json.dumps(asdict(self), default=str), parse_constant=lambda _: None)  # JSON has no NaN
        write_json(folder / JSON_NAME, values)
        with replacing(folder / CURVES_NAME) as fresh:
            _draw(self, fresh)


def described(model: SentenceTransformer) -> dict[str, Any]:
    """The facts about a model that a card tells, and that the folder of a prompt adapter alone does not hold.

    Returns:
        ``dimension``, ``pooling``, ``max_tokens`` of a text, ``positions``, and the ``prompts`` of retrieval.
    """
    pooling = next((module.pooling_mode for module in model if isinstance(module, Pooling)), None)
    return {
        "dimension": model.get_embedding_dimension(),
        "pooling": pooling,
        "max_tokens": model.max_seq_length,
        "positions": num_positions(model),
        "prompts": dict(model.prompts),
    }


def read_earlier(folder: Path) -> dict[str, Any] | None:
    """The record of the run that made a model, if its folder has one.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    path = folder / JSON_NAME
    return dict(read_json(path)) if path.is_file() else None


def stages(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A run's record behind those of the runs that it goes back to, the first one first."""
    earlier = record.get("earlier")
    return [*(stages(earlier) if earlier else ()), record]


def check_plotting() -> None:
    """Find out before a run, and not after it, whether its curves can be drawn.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError("The curves of a run are drawn by matplotlib: pip install 'e2rank-st[train]'") from error


def _draw(record: TrainingRecord, path: Path) -> None:
    """Losses on the left, nDCG@10 on the right, over the steps."""
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(13, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in PARTS:
        points = [(row["step"], row[name]) for row in record.log if name in row]
        if points:
            left.plot(*zip(*points, strict=True), label=name)
    names = sorted({name for row in record.dev for name in row})
    curves = {name: found.groups() for name in names if (found := CURVE.match(name))}
    data_sets = sorted({data for data, _ in curves.values()})
    for name, (data, system) in curves.items():  # a colour a data set, a style a system
        points = [(row["step"], row[name]) for row in record.dev if name in row]
        look = {"color": f"C{data_sets.index(data)}", "linestyle": STYLES[system]}
        right.plot(*zip(*points, strict=True), marker=".", label=name, **look)
    if record.best_step is not None and curves:
        right.axvline(record.best_step, color="grey", linewidth=0.8, linestyle=":", label="kept")
    for axes, title in ((left, "training loss"), (right, "nDCG@10 on dev data")):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.get_lines():  # three lines a data set soon cover each other's legend, so that one is outside
            place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if axes is right else {}
            axes.legend(fontsize="small", **place)
    figure.savefig(path, format="png", dpi=120)


def split_log(
    log: Iterable[Mapping[str, Any]], metrics: Iterable[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Sort a trainer's log into losses and evaluations.

    Args:
        log: ``log_history`` of the trainer's state.
        metrics: Names of the evaluator's metrics.

    Returns:
        Rows of losses, and rows of metrics under their own names, both with ``step``.
    """
    kept, names = ("step", *PARTS, "learning_rate", "grad_norm"), set(metrics)
    losses, evaluations = [], []
    for row in log:
        if "loss" in row:
            losses.append({name: row[name] for name in kept if name in row})
        found = {name.removeprefix("eval_"): value for name, value in row.items()}
        found = {name: value for name, value in found.items() if name in names}
        if found:
            evaluations.append({"step": row["step"], **found})
    return losses, evaluations
