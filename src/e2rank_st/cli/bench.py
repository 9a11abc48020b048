"""The command ``e2rank bench``: times of all ways to rank, on the user's own machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2rank_st.cli.models import BUNDLED
from e2rank_st.cli.options import Device, Figure, Verbose, examples
from e2rank_st.console import Column, show
from e2rank_st.storage import write_json

if TYPE_CHECKING:
    from e2rank_st.benchmarks.speed import Line

__all__ = ["BENCH_EXAMPLES", "bench", "run"]

BENCH_EXAMPLES = examples(
    "bench",
    "bench --work short --turns 10 --output speed.json --figure speed.png",
    "bench --model qwen3-0.6b --device cuda --dtypes bfloat16 --results hits.jsonl.gz",
)
TYPES = ("float32", "bfloat16", "float16")
COLUMNS = (
    Column("way", share=1),
    Column("type"),
    Column("ms a query", ",.1f", style="green"),
    Column("least", ",.1f"),
    Column("most", ",.1f"),
    Column("x CrossEncoder", ",.2f"),
    Column("of the floor", ".0%"),
    Column("outside", ".0%"),
    Column("tokens", ",d"),
)


def bench(
    model: Annotated[
        str, typer.Option(metavar="NAMES", help="Bundled models; or qwen3-0.6b, qwen3-small: weights are drawn.")
    ] = BUNDLED,
    work: Annotated[
        str, typer.Option(metavar="NAMES", help="Documents of one passage (short), two (medium) or five (long).")
    ] = ("short,long"),
    turns: Annotated[int, typer.Option(min=1, metavar="N", help="Counted turns of each way.")] = 5,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="First-stage results with text; by default, docstrings.")
    ] = None,
    dtypes: Annotated[
        str, typer.Option(metavar="TYPES", help="Types of the weights; auto: float32, and bfloat16 where it is faster.")
    ] = "auto",
    tokenizer: Annotated[
        str, typer.Option(metavar="NAME", help="Hub id or folder of the tokenizer of the qwen3 models.")
    ] = "Qwen/Qwen3-0.6B",
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write all as JSON.")] = None,
    figure: Figure = None,
    device: Device = None,
    verbose: Verbose = 0,
) -> None:
    """Time reranking against what you could take instead: a cross-encoder, a generative reranker, plain encode.

    All rank 100 candidates on the same backbone, in turns. 'x CrossEncoder' compares with the cross-encoder in float32,
    or else in the first type. 'of the floor' is the share of the machine's rate of matrix products that is reached;
    'outside' is the share of time that the model does not take.
    """
    from e2rank_st.benchmarks.figures import draw_speed, save
    from e2rank_st.benchmarks.speed import Line

    found = run(model, work, turns, results, dtypes, tokenizer, device)
    if output is not None:
        write_json(output, found)
    lines = [Line(**line) for line in found["lines"]]
    for name, length in dict.fromkeys((line.model, line.work) for line in lines):
        rows = [_row(line) for line in lines if (line.model, line.work) == (name, length)]
        show(COLUMNS, rows, title=f"{name}, {length} documents, {found['environment']['hardware']['device']}")
    if figure is not None:
        save(draw_speed(lines), figure)


def run(
    model: str, work: str, turns: int, results: Path | None, dtypes: str, tokenizer: str, device: str | None
) -> dict[str, Any]:
    """Measure what the options of the command ask for.

    Raises:
        typer.BadParameter: A name is not allowed.
    """
    import torch
    from sentence_transformers.util import get_device_name

    from e2rank_st.benchmarks.speed import WORKS, measure, works
    from e2rank_st.precision import fastest_dtype

    place = device or get_device_name()
    lengths, types = work.split(","), dtypes.split(",")
    if unknown := [name for name in lengths if name not in WORKS]:
        raise typer.BadParameter(f"got the work {unknown[0]!r}; give one of {', '.join(WORKS)}")
    if types == ["auto"]:
        types = list(dict.fromkeys(("float32", str(fastest_dtype(torch.device(place))).removeprefix("torch."))))
    if unknown := [name for name in types if name not in TYPES]:
        raise typer.BadParameter(f"got the type {unknown[0]!r}; give {', '.join(TYPES)}")
    given = {name: works(results, WORKS[name], turns + 1) for name in lengths}
    shown = sys.stderr.isatty()
    try:
        return measure(model.split(","), given, types, device=place, tokenizer=tokenizer, show_progress_bar=shown)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _row(line: Line) -> tuple[Any, ...]:
    return (
        line.way, line.dtype, line.milliseconds, line.least, line.most,
        line.ratio, line.of_floor, line.outside, line.tokens,
    )  # fmt: skip
