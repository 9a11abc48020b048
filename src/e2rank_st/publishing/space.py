"""A published model → the files of a Space on the Hugging Face Hub: the page of ``e2rank demo --web``."""

from __future__ import annotations

from pathlib import Path

from e2rank_st import __version__
from e2rank_st.checkpoints import HUB_ID
from e2rank_st.storage import write_text

__all__ = ["write_space"]

GRADIO = "6.31.0"  # the Hub installs it; a version that the extra "web" allows
README = """---
title: E2Rank
emoji: 🔎
colorFrom: yellow
colorTo: red
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
license: apache-2.0
short_description: One embedding model retrieves and reranks
models:
  - {repo_id}
---
Search the docstrings of Python's standard library, or texts of your own, with
[{repo_id}](https://huggingface.co/{repo_id}). The page shows the order of the first stage beside the reranked one, what
the listwise prompt held, and the times. `e2rank demo --web` shows the same page on your machine.
"""
APP = '''"""The page of ``e2rank demo --web``, on the docstrings of Python's standard library."""

from e2rank_st import E2Rank
from e2rank_st.cli.demo import open_index, show_page
from e2rank_st.data.docstrings import QUERIES

show_page(open_index(E2Rank("{repo_id}"), None, keep=False), None, QUERIES, top_k=10)
'''
REQUIREMENTS = """--extra-index-url https://download.pytorch.org/whl/cpu
e2rank-st[web]=={version}
"""
FILES = {"README.md": README, "app.py": APP, "requirements.txt": REQUIREMENTS}


def write_space(repo_id: str, folder: Path) -> None:
    """Write the files of a Space. The same model gives the same bytes.

    Args:
        repo_id: Hub id of the model, ``org/name``.
        folder: The folder to write them to.

    Raises:
        ValueError: The id is not one.
        OSError: The folder cannot be written.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise ValueError(f"Got the repository {repo_id!r}; a Hub id looks like org/name.")
    for name, text in FILES.items():
        write_text(folder / name, text.format(repo_id=repo_id, gradio=GRADIO, version=__version__))
