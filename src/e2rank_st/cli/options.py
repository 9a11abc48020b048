"""Options that several commands have, and the form of their examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from typer import BadParameter, Option

from e2rank_st.console import log_to_stderr

__all__ = ["BatchSize", "Device", "Dtype", "Figure", "Verbose", "examples"]


def examples(*commands: str, program: str = "e2rank") -> str:
    """Format examples for the end of a help text; the mark at the start keeps the line ends.

    A pipe has to name the program itself.
    """
    lines = (command if "|" in command else f"{program} {command}" for command in commands)
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _set_verbosity(verbosity: int) -> int:
    log_to_stderr(verbosity)
    return verbosity


def _check_figure(path: Path | None) -> Path | None:
    """Refuse a file that no figure could be written to, before anything takes time."""
    if path is not None:
        from e2rank_st.benchmarks.figures import check_file

        try:
            check_file(path)
        except ValueError as error:
            raise BadParameter(str(error)) from error
    return path


Device = Annotated[str | None, Option(metavar="NAME", help="cpu, cuda, cuda:1, mps, ...; by default the best device.")]
DtypeName: TypeAlias = Literal["auto", "saved", "float32", "bfloat16", "float16"]
Dtype = Annotated[
    DtypeName,
    Option(
        metavar="TYPE",
        help="Of the weights: auto (bfloat16 where it is faster, else float32), saved (as the model has them), "
        "float32, bfloat16 or float16.",
    ),
]
Figure = Annotated[
    Path | None, Option(metavar="FILE", help="Draw a figure: .png, .pdf or .svg.", callback=_check_figure)
]
BatchSize = Annotated[int, Option(min=1, metavar="N", help="Texts in a forward pass.")]
Verbose = Annotated[
    int,
    Option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        callback=_set_verbosity,
        help="Show progress; -vv also shows tracebacks.",
    ),
]
