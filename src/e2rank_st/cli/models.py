"""A name on the command line → the model, with a spinner and times for a person who waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from e2rank_st.bundled import NAMES

if TYPE_CHECKING:
    from e2rank_st.model import E2Rank

__all__ = ["BUNDLED", "IndexModel", "ModelName", "load_encoder", "name_of_maker", "step"]

BUNDLED = "bundled"
ModelName = Annotated[
    str,
    typer.Option("--model", metavar="NAME", help="Hub id or folder; 'bundled' is the small model in the package."),
]


IndexModel = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="Hub id or folder; by default the model that made the index, or 'bundled'."
    ),
]


@contextmanager
def step(doing: str, *, spin: bool = True, tell: bool = True) -> Iterator[None]:
    """Show a spinner during a step, if stderr is a terminal, and report its seconds."""
    start = time.perf_counter()
    with Console(stderr=True).status(doing) if spin else nullcontext():
        yield
    if tell:
        typer.echo(f"{doing}: {time.perf_counter() - start:.1f} s", err=True)


def load_encoder(name: str, device: str | None, dtype: str, *, tell: bool = False) -> E2Rank:
    """Load the model. A model from the Hub shows the bars of its download instead of a spinner."""
    is_local = name in NAMES or Path(name).is_dir()
    with step("loading the model", spin=is_local, tell=tell):
        from transformers.utils.logging import disable_progress_bar, enable_progress_bar

        from e2rank_st.loading import load_model

        if is_local or not sys.stderr.isatty():
            disable_progress_bar()
        try:
            return load_model(name, device=device, dtype=dtype)
        finally:
            enable_progress_bar()  # the bars of reranking use the same switch


def name_of_maker(folder: str) -> str | None:
    """The name of the model that made an index; None if there is no index, or no name."""
    from e2rank_st.search.index import SearchIndex

    try:
        name: str | None = SearchIndex.open(folder).settings["model"]
    except FileNotFoundError:
        return None
    return name
