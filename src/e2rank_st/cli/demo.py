"""The standard library's docstrings → an index in the user's cache folder, which the next call only opens.

Or an index of the user → a page that searches it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from e2rank_st.cli.models import step
from e2rank_st.console import one_line
from e2rank_st.data import docstrings as library
from e2rank_st.data.docstrings import Docstring
from e2rank_st.search.index import SearchIndex
from e2rank_st.search.maker import describe

if TYPE_CHECKING:
    from e2rank_st.model import E2Rank

__all__ = ["LIBRARY", "docstring_index", "open_index", "show_page"]

logger = logging.getLogger(__name__)

LIBRARY = "Docstrings of Python's standard library"


def open_index(model: E2Rank, folder: str | None, *, keep: bool = True, batch_size: int = 32) -> SearchIndex:
    """Open the index of a folder; without a folder, that of the docstrings.

    Raises:
        FileNotFoundError: There is no index.
        ValueError: The model gives other vectors than those of the index.
    """
    if folder is not None:
        return SearchIndex.open(folder, model)
    with step("collecting the standard library's docstrings"):
        docstrings = library.collect()
    with step(f"index of {len(docstrings)} texts", spin=False):
        return docstring_index(model, docstrings, keep=keep, batch_size=batch_size)


def show_page(index: SearchIndex, folder: str | None, queries: Sequence[str], top_k: int) -> None:
    """Show a page that searches an index, until the user interrupts it."""
    from e2rank_st.serving.page import Answers, create_page, run

    name = LIBRARY if folder is None else Path(folder).name
    page = create_page(Answers(index, name, top_k), queries)
    run(page, lambda url: typer.echo(f"the page is at {url} ; Ctrl-C ends it", err=True))


def docstring_index(
    model: E2Rank, docstrings: Sequence[Docstring], *, keep: bool = True, batch_size: int = 32
) -> SearchIndex:
    """Open the index of these docstrings, or make it. If it cannot be kept, the next call only takes longer.

    Args:
        model: The model that will search the index.
        docstrings: The documents; the name of each is its id and its title.
        keep: Whether to keep the index in the user's cache folder.
        batch_size: Texts in a forward pass.
    """
    documents = [{"id": part.name, "title": part.name, "text": part.text} for part in docstrings]
    shown: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": sys.stderr.isatty()}
    if keep:
        try:
            return SearchIndex.create(_cache_folder(model, documents), model, documents, **shown)
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: Python does not find a home folder
            logger.warning("Cannot keep the index for the next call: %s", one_line(error))
    return SearchIndex.create(None, model, documents, **shown)


def _cache_folder(model: E2Rank, documents: list[dict[str, str]]) -> Path:
    """Name the folder for this model and these documents, below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    identity = json.dumps([describe(model), documents])
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "e2rank-st", f"demo-{key}")
