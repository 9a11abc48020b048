"""Rows of results → figures that read in print, in black and white, and by the colour-blind.

Colours are those of Okabe and Ito; a system's hatch, marker and line style tell it apart without them. A system looks
the same in all figures of a benchmark, and tasks carry the marks that they have in tables.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Container, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from e2rank_st.benchmarks.results import Row, marked, titled

__all__ = ["FIGURES", "draw"]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#666666")
HATCHES = ("", "///", "...", "\\\\\\", "xx", "--", "++", "oo")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
LEGEND_LETTERS, LEGEND_MARK = 12, 8  # letters of a legend to an inch, and what stands beside a label, in letters
PANELS = 12  # tasks that get a panel in the figure of gains


class Style(NamedTuple):
    """How a system is drawn."""

    colour: str
    hatch: str
    marker: str
    line: str


def _style(place: int) -> Style:
    return Style(*(options[place % len(options)] for options in (COLOURS, HATCHES, MARKERS, LINES)))


def _figure(width: float, height: float) -> Any:
    try:
        library = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError("Figures are drawn by matplotlib: pip install 'e2rank-st[eval]'") from error
    return library.Figure(figsize=(width, height), layout="constrained")


def _by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(titled(row, rows), []).append(row)
    return groups


def _axes(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def scores(rows: Sequence[Row]) -> Any:
    """The main score of each system on each task, with its confidence interval."""
    groups, columns = _by_label(rows), list(dict.fromkeys(marked(row) for row in rows))
    width = 0.8 / len(groups)
    figure = _figure(max(6.0, 1.5 + 0.28 * len(groups) * len(columns)), 4)
    axes = figure.subplots()
    for place, (label, part) in enumerate(groups.items()):
        style = _style(place)
        for row in part:
            height = 100 * row.scores["main"]
            reach = [[abs(height - 100 * bound)] for bound in row.interval] if row.interval else None
            axes.bar(
                columns.index(marked(row)) + (place - (len(groups) - 1) / 2) * width,
                height,
                width,
                yerr=reach,
                color=style.colour,
                hatch=style.hatch,
                edgecolor="black",
                linewidth=0.6,
                error_kw={"linewidth": 0.8, "capsize": 2},
                label=label if row is part[0] else None,
            )
    axes.set_xticks(range(len(columns)), columns, rotation=30 if len(columns) > 4 else 0)
    _axes(axes, "", "", "nDCG@10" if rows[0].benchmark == "reranking" else "main score")
    across = int(figure.get_figwidth() * LEGEND_LETTERS / (max(map(len, groups)) + LEGEND_MARK))
    columns_of_legend = min(len(groups), 4, max(across, 1))
    figure.legend(loc="outside upper center", ncols=columns_of_legend, fontsize="small", frameon=False)
    return figure


def latency(rows: Sequence[Row]) -> Any:
    """The mean score over the milliseconds a query: with stored vectors filled, without them hollow."""
    if not any(spread for row in rows for spread in row.latency.values()):
        return None
    figure = _figure(7, 4.2)
    axes = figure.subplots()
    for place, (label, part) in enumerate(_by_label(rows).items()):
        style, height = _style(place), 100 * fmean(row.scores["main"] for row in part)
        times = {}
        for kind in ("stored", "fresh"):
            medians = [spread["median"] for row in part if (spread := row.latency.get(kind))]
            if medians:
                times[kind] = fmean(medians)
        axes.plot(list(times.values()), [height] * len(times), color=style.colour, linewidth=0.8, linestyle=":")
        for kind, time in times.items():
            fill = style.colour if kind == "stored" else "white"
            axes.plot(
                time,
                height,
                style.marker,
                color=style.colour,
                markerfacecolor=fill,
                markeredgecolor="black" if kind == "stored" else style.colour,
                markersize=8,
                label=label if kind == next(iter(times)) else None,
            )
    axes.set_xscale("log")
    _axes(axes, "filled: stored document vectors, hollow: none stored", "milliseconds a query (median)", "mean nDCG@10")
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure


def prompt_documents(rows: Sequence[Row]) -> Any:
    """The score over the number of documents in the prompt, with the plain embedding as a level."""
    listwise = [row for row in rows if row.kind == "listwise" and row.num_prompt_documents is not None]
    curves: dict[tuple[str, str], list[Row]] = {}
    for row in listwise:
        curves.setdefault((row.column, row.model), []).append(row)
    curves = {key: part for key, part in curves.items() if len({row.num_prompt_documents for row in part}) > 1}
    if not curves:
        return None
    figure = _figure(6.5, 4)
    axes = figure.subplots()
    several = len({model for _, model in curves}) > 1
    for place, ((column, model), part) in enumerate(curves.items()):
        style = _style(place)
        points = sorted((row.num_prompt_documents or 0, 100 * row.scores["main"]) for row in part)
        label = f"{marked(part[0])} ({model})" if several else marked(part[0])
        axes.plot(
            *zip(*points, strict=True),
            color=style.colour,
            marker=style.marker,
            linestyle=style.line,
            markeredgecolor="black",
            label=label,
        )
        for row in rows:
            if row.kind == "embedding" and (row.column, row.model) == (column, model):
                axes.axhline(100 * row.scores["main"], color=style.colour, linewidth=0.9, linestyle=(0, (1, 3)))
    axes.set_xticks(sorted({row.num_prompt_documents or 0 for part in curves.values() for row in part}))
    _axes(axes, "dotted level: plain embedding", "documents in the prompt (K)", "nDCG@10")
    figure.legend(loc="outside lower center", fontsize="small", frameon=False)  # the curves fill the axes
    return figure


def gains(rows: Sequence[Row]) -> Any:
    """What listwise reranking gains on each query against what it is compared with, a panel a task and model."""
    chosen = [
        row
        for row in rows
        if row.kind == "listwise" and row.comparison and row.per_query and not row.system.startswith("baseline_")
    ]
    if not chosen:
        return None
    panels = chosen[:PANELS]
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    figure = _figure(max(5.0, 3.6 * across), 3.2 * down)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes, row in zip(grid.flat, panels, strict=False):
        against = _compared_with(row, rows)
        differences = sorted((100 * (score - against.per_query[query]) for query, score in row.per_query.items()))[::-1]
        edges = range(len(differences) + 1)  # an area, since the edges of a thousand bars would hide their colours
        for value, colour, hatch in ((max, COLOURS[0], ""), (min, COLOURS[1], "////")):
            heights = [value(difference, 0) for difference in differences]
            axes.stairs(heights, edges, fill=True, facecolor=colour, edgecolor="black", linewidth=0.5, hatch=hatch)
        axes.axhline(0, color="black", linewidth=0.8)
        _axes(axes, f"{marked(row)}\n{titled(row, rows)} − {against.system}", "queries, by gain", "nDCG@10 gained")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    if len(chosen) > PANELS:
        figure.suptitle(f"the first {PANELS} of {len(chosen)}: name --tasks to see others")
    return figure


def _compared_with(row: Row, rows: Sequence[Row]) -> Row:
    """The row that a row's comparison names: of its own model if that has such a system."""
    named = [
        other
        for other in rows
        if row.comparison and (other.column, other.system) == (row.column, row.comparison["against"])
    ]
    return next((other for other in named if other.model == row.model), named[0])


FIGURES: Mapping[str, Callable[[Sequence[Row]], Any]] = {
    "scores": scores,
    "latency": latency,
    "prompt-documents": prompt_documents,
    "gains": gains,
}


def draw(rows: Sequence[Row], only: Container[str] = FIGURES) -> dict[str, Any]:
    """Draw the figures that there is data for.

    Args:
        rows: What they show.
        only: Names of those to draw.

    Returns:
        Figures by name: ``{benchmark}-{figure}``.

    Raises:
        ImportError: matplotlib is missing.
    """
    found = {}
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        part = [row for row in rows if row.benchmark == benchmark]
        for name, make in FIGURES.items():
            if name in only and (figure := make(part)) is not None:
                found[f"{benchmark}-{name}"] = figure
    return found
