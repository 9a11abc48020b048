"""Results → figures that read in print, in black and white, and by the colour-blind.

Colours are those of Okabe and Ito; a system's hatch, marker and line style tell it apart without them. A system looks
the same in all figures of a benchmark, and tasks carry the marks that they have in tables.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from e2rank_st.benchmarks.results import Entry, column_with_marks, titled
from e2rank_st.evaluation.tuning import Tuning
from e2rank_st.storage import replacing

if TYPE_CHECKING:
    from e2rank_st.benchmarks.speed import Line

__all__ = ["FIGURES", "check_file", "draw", "draw_speed", "draw_tuning", "save", "separation"]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#666666")
HATCHES = ("", "///", "...", "\\\\\\", "xx", "--", "++", "oo")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
LEGEND_LETTERS, LEGEND_MARK = 12, 8  # letters of a legend to an inch, and what stands beside a label, in letters
ENDINGS = (".png", ".pdf", ".svg")
PANELS = 12  # tasks that get a panel in the figure of gains


def _style(place: int) -> tuple[str, str, str, str]:
    """Colour, hatch, marker and line of a system."""
    colour, hatch, marker, line = (kind[place % len(kind)] for kind in (COLOURS, HATCHES, MARKERS, LINES))
    return colour, hatch, marker, line


def check_file(path: Path) -> None:
    """Refuse a file that no figure could be written to, before anything takes time.

    Raises:
        ValueError: The ending is not one of a figure's.
        ImportError: matplotlib is missing.
    """
    if path.suffix not in ENDINGS:
        raise ValueError(f"Got the figure {str(path)!r}; its name must end in one of {', '.join(ENDINGS)}.")
    _figure(1, 1)


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format of the file's ending, whole or not at all."""
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=150, format=path.suffix.removeprefix("."))


def _figure(width: float, height: float) -> Any:
    try:
        library = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError("Figures are drawn by matplotlib: pip install 'e2rank-st[eval]'") from error
    return library.Figure(figsize=(width, height), layout="constrained")


def _by_label(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(titled(entry, entries), []).append(entry)
    return groups


def _axes(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def scores(entries: Sequence[Entry]) -> Any:
    """The main score of each system on each task, with its confidence interval."""
    groups, columns = _by_label(entries), list(dict.fromkeys(column_with_marks(entry) for entry in entries))
    width = 0.8 / len(groups)
    figure = _figure(max(6.0, 1.5 + 0.28 * len(groups) * len(columns)), 4)
    axes = figure.subplots()
    for place, (label, part) in enumerate(groups.items()):
        colour, hatch, _, _ = _style(place)
        for entry in part:
            height = 100 * entry.main
            reach = [[abs(height - 100 * bound)] for bound in entry.system.interval] if entry.system.interval else None
            axes.bar(
                columns.index(column_with_marks(entry)) + (place - (len(groups) - 1) / 2) * width,
                height,
                width,
                yerr=reach,
                color=colour,
                hatch=hatch,
                edgecolor="black",
                linewidth=0.6,
                error_kw={"linewidth": 0.8, "capsize": 2},
                label=label if entry is part[0] else None,
            )
    axes.set_xticks(range(len(columns)), columns, rotation=30 if len(columns) > 4 else 0)
    _axes(axes, "", "", "nDCG@10" if entries[0].result.benchmark == "reranking" else "main score")
    across = int(figure.get_figwidth() * LEGEND_LETTERS / (max(map(len, groups)) + LEGEND_MARK))
    columns_of_legend = min(len(groups), 4, max(across, 1))
    figure.legend(loc="outside upper center", ncols=columns_of_legend, fontsize="small", frameon=False)
    return figure


def latency(entries: Sequence[Entry]) -> Any:
    """The mean score over the milliseconds a query: with stored vectors filled, without them hollow."""
    if not any(spread for entry in entries for spread in entry.system.latency.values()):
        return None
    figure = _figure(7, 4.2)
    axes = figure.subplots()
    for place, (label, part) in enumerate(_by_label(entries).items()):
        (colour, _, marker, _), height = _style(place), 100 * fmean(entry.main for entry in part)
        times = {}
        for kind in ("stored", "fresh"):
            medians = [spread["median"] for entry in part if (spread := entry.system.latency.get(kind))]
            if medians:
                times[kind] = fmean(medians)
        axes.plot(list(times.values()), [height] * len(times), color=colour, linewidth=0.8, linestyle=":")
        for kind, time in times.items():
            fill = colour if kind == "stored" else "white"
            axes.plot(
                time,
                height,
                marker,
                color=colour,
                markerfacecolor=fill,
                markeredgecolor="black" if kind == "stored" else colour,
                markersize=8,
                label=label if kind == next(iter(times)) else None,
            )
    axes.set_xscale("log")
    _axes(axes, "filled: stored document vectors, hollow: none stored", "milliseconds a query (median)", "mean nDCG@10")
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure


def prompt_documents(entries: Sequence[Entry]) -> Any:
    """The score over the number of documents in the prompt, with the plain embedding as a level."""
    listwise = [entry for entry in entries if entry.system.kind == "listwise" and _count(entry) is not None]
    curves: dict[tuple[str, str], list[Entry]] = {}
    for entry in listwise:
        curves.setdefault((entry.column, entry.model), []).append(entry)
    curves = {key: part for key, part in curves.items() if len(set(map(_count, part))) > 1}
    if not curves:
        return None
    figure = _figure(6.5, 4)
    axes = figure.subplots()
    several = len({model for _, model in curves}) > 1
    for place, ((column, model), part) in enumerate(curves.items()):
        colour, _, marker, line = _style(place)
        points = sorted((_count(entry) or 0, 100 * entry.main) for entry in part)
        label = f"{column_with_marks(part[0])} ({model})" if several else column_with_marks(part[0])
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            linestyle=line,
            markeredgecolor="black",
            label=label,
        )
        for entry in entries:
            if entry.system.kind == "embedding" and (entry.column, entry.model) == (column, model):
                axes.axhline(100 * entry.main, color=colour, linewidth=0.9, linestyle=(0, (1, 3)))
    axes.set_xticks(sorted({_count(entry) or 0 for part in curves.values() for entry in part}))
    _axes(axes, "dotted level: plain embedding", "documents in the prompt (K)", "nDCG@10")
    figure.legend(loc="outside lower center", fontsize="small", frameon=False)  # the curves fill the axes
    return figure


def _count(entry: Entry) -> int | None:
    """K of a listwise system."""
    count: int | None = entry.system.parameters.get("num_prompt_documents")
    return count


def gains(entries: Sequence[Entry]) -> Any:
    """The gain of listwise reranking on each query over the compared system, a panel for each task and model."""
    chosen = [
        entry
        for entry in entries
        if entry.system.kind == "listwise" and entry.system.comparison and entry.system.per_query
        if not entry.name.startswith("baseline_")
    ]
    if not chosen:
        return None
    panels = chosen[:PANELS]
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    figure = _figure(max(5.0, 3.6 * across), 3.2 * down)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes, entry in zip(grid.flat, panels, strict=False):
        against = _compared_with(entry, entries)
        own, others = entry.system.per_query, against.system.per_query
        differences = sorted((100 * (score - others[query]) for query, score in own.items()), reverse=True)
        _gain_area(axes, differences)
        _axes(
            axes,
            f"{column_with_marks(entry)}\n{titled(entry, entries)} − {against.name}",
            "queries, by gain",
            "nDCG@10 gained",
        )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    if len(chosen) > PANELS:
        figure.suptitle(f"the first {PANELS} of {len(chosen)}: name fewer result files to see others")
    return figure


def _gain_area(axes: Any, differences: Sequence[float]) -> None:
    """Gains and losses of queries, sorted."""
    edges = range(len(differences) + 1)  # an area, since the edges of a thousand bars would hide their colours
    for value, colour, hatch in ((max, COLOURS[0], ""), (min, COLOURS[1], "////")):
        heights = [value(difference, 0) for difference in differences]
        axes.stairs(heights, edges, fill=True, facecolor=colour, edgecolor="black", linewidth=0.5, hatch=hatch)
    axes.axhline(0, color="black", linewidth=0.8)


def _compared_with(entry: Entry, entries: Sequence[Entry]) -> Entry:
    """The entry that an entry's comparison names: of its own model if that has such a system."""
    named = [
        other
        for other in entries
        if entry.system.comparison and (other.column, other.name) == (entry.column, entry.system.comparison["against"])
    ]
    return next((other for other in named if other.model == entry.model), named[0])


def separation(parts: Sequence[Any]) -> Any:
    """The highest similarities of queries with and without relevant documents, and the ROC curves between them.

    Args:
        parts: The measured corpora (:class:`~e2rank_st.benchmarks.relevance.Separation`), a row of panels each.
    """
    figure = _figure(9, 3.2 * len(parts))
    grid = figure.subplots(len(parts), 2, squeeze=False)
    for (left, right), part in zip(grid, parts, strict=True):
        for place, name in enumerate(("present", "removed", "foreign")):
            colour, _, _, line = _style(place)
            values = sorted(getattr(part, name))
            shares = [(count + 1) / len(values) for count in range(len(values))]
            left.step(values, [1 - share for share in shares], color=colour, linestyle=line, label=name)
            if name != "present":
                thresholds = sorted({*part.present, *values}, reverse=True)
                curve = [[_share_from(scores, bar) for bar in thresholds] for scores in (values, part.present)]
                right.plot([0, *curve[0]], [0, *curve[1]], color=colour, linestyle=line, label=f"present or {name}")
        right.plot([0, 1], [0, 1], color="#666666", linewidth=0.8, linestyle=":")
        for axes in (left, right):
            axes.legend(fontsize="small", frameon=False)
            axes.set_ylim(0, 1.02)
        _axes(left, part.title, "min_similarity", "queries that keep a result")
        _axes(right, part.title, "absent, and a result is kept", "present, and a result is kept")
    return figure


def _share_from(values: Sequence[float], bar: float) -> float:
    """Share of values that are not below a bar."""
    return fmean(value >= bar for value in values)


def draw_tuning(tuning: Tuning) -> Any:
    """The score over the first stage's share, a line for each share of the query, and the gain on held-out queries.

    Order and K are those of the best setting that has a prompt.

    Raises:
        ImportError: matplotlib is missing.
    """
    prompted = [setting for setting, _ in tuning.trials if setting.query_weight < 1]
    known, best = dict(tuning.trials), prompted[0]
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for place, weight in enumerate(
        sorted({setting.query_weight for setting in known if setting.first_stage_weight < 1})
    ):
        colour, _, marker, line = _style(place)
        points = sorted(
            (setting.first_stage_weight, 100 * score)
            for setting, score in known.items()
            if setting.query_weight == weight and setting.first_stage_weight < 1
            if weight == 1 or setting[:2] == best[:2]
        )
        label = f"w = {weight:g}" if weight < 1 else "w = 1 (embedding)"
        left.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, label=label)
    left.axhline(100 * tuning.first_stage, color="black", linewidth=0.9, linestyle=(0, (1, 3)), label="first stage")
    title = f"{best.candidate_order}, K = {best.num_prompt_documents}"
    _axes(left, title, "share of the first stage", "nDCG@10 on all queries")
    left.legend(fontsize="small", frameon=False)
    pairs = zip(tuning.per_query["held_out"], tuning.per_query["first_stage"], strict=True)
    _gain_area(right, sorted((100 * (score - other) for score, other in pairs), reverse=True))
    _axes(right, "held-out queries", "queries, by gain", "nDCG@10 gained")
    return figure


def draw_speed(lines: Sequence[Line]) -> Any:
    """The milliseconds a query of each way to rank, over a logarithmic axis; a panel for each model and work.

    A black mark shows the floor: what the needed operations take at the rate of a matrix product.

    Raises:
        ImportError: matplotlib is missing.
    """
    panels = list(dict.fromkeys((line.model, line.work) for line in lines))
    ways = list(dict.fromkeys(line.way for line in lines))[::-1]
    types = list(dict.fromkeys(line.dtype for line in lines))
    figure = _figure(3.2 + 3.6 * len(panels), 1.4 + 0.32 * len(ways) * len(types))
    height = 0.8 / len(types)
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for line in (line for line in lines if (line.model, line.work) == panel):
            colour, hatch, _, _ = _style(types.index(line.dtype))
            place = ways.index(line.way) - (types.index(line.dtype) - (len(types) - 1) / 2) * height
            axes.barh(
                place, line.milliseconds, height, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6,
                xerr=[[line.milliseconds - line.least], [line.most - line.milliseconds]],
                error_kw={"linewidth": 0.8, "capsize": 2},
            )  # fmt: skip
            axes.plot(line.floor, place, "|", color="black", markersize=10, markeredgewidth=2)
        axes.set_xscale("log")
        axes.set_yticks(range(len(ways)), ways)
        _axes(axes, f"{panel[0]}, {panel[1]} documents", "milliseconds a query", "")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", alpha=0.3)
    if len(types) > 1:
        patches = importlib.import_module("matplotlib.patches")
        shown = [
            patches.Patch(facecolor=_style(place)[0], hatch=_style(place)[1], edgecolor="black", label=name)
            for place, name in enumerate(types)
        ]
        figure.legend(handles=shown, loc="outside upper center", ncols=len(types), fontsize="small", frameon=False)
    return figure


FIGURES: Mapping[str, Callable[[Sequence[Entry]], Any]] = {
    "scores": scores,
    "latency": latency,
    "prompt-documents": prompt_documents,
    "gains": gains,
}


def draw(entries: Sequence[Entry], only: Container[str] = FIGURES) -> dict[str, Any]:
    """Draw the figures that there is data for.

    Returns:
        Figures by name: ``{benchmark}-{figure}``.

    Raises:
        ImportError: matplotlib is missing.
    """
    found = {}
    for benchmark in dict.fromkeys(entry.result.benchmark for entry in entries):
        part = [entry for entry in entries if entry.result.benchmark == benchmark]
        for name, make in FIGURES.items():
            if name in only and (figure := make(part)) is not None:
                found[f"{benchmark}-{name}"] = figure
    return found
