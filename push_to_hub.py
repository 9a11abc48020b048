"""A model → a repository on the Hugging Face Hub that anyone can load, verified before a byte of it is uploaded."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from e2rank_st import __version__
from e2rank_st.console import log_to_stderr, reported_errors

ROOT = Path(__file__).resolve().parent
CARDS, LICENSE = ROOT / "model_card", ROOT / "LICENSE"  # of the bundled models

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, an adapter's folder, or a Hub id.")],
    repo_id: Annotated[str, typer.Option(metavar="ORG/NAME", help="The repository to publish.")],
    card: Annotated[Path | None, typer.Option(metavar="FILE", help="The card; else the model's README.md.")] = None,
    license_file: Annotated[
        Path | None, typer.Option("--license", metavar="FILE", help="The licence's text; else the model's LICENSE.")
    ] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Publish an adapter alone, without its base.")] = False,
    base_model: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Hub id of an adapter's base that is a folder here.")
    ] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="How to wire a plain checkpoint.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep the build here.")] = None,
    version: Annotated[str, typer.Option(metavar="1.2.3", help="Tag of the commits.")] = __version__,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    exist_ok: Annotated[bool, typer.Option("--exist-ok", help="Publish into a repository that exists.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace different content and tags there.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open pull requests instead of committing.")] = False,
    run_card: Annotated[
        bool, typer.Option("--run-card", help="Run the card's Python, without network. Read the card before.")
    ] = False,
    space: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the files of a Space of the model here.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do all but upload.")] = False,
) -> None:
    """Build, verify and publish a model.

    The files, the checks and the plan go to standard output, progress and errors to standard error. The token is that
    of `hf auth login`, or HF_TOKEN.

    \b
    Examples:
      python push_to_hub.py src/e2rank_st/bundled/e2rank-minilm-l6 --repo-id org/e2rank-minilm-l6 --dry-run
      python push_to_hub.py runs/stage2/final --repo-id org/e2rank --card card.md --license LICENSE --private
      python push_to_hub.py runs/prompts/final --repo-id org/prompts --card card.md --license LICENSE --adapter
      python push_to_hub.py runs/stage2/final --repo-id org/e2rank --card card.md --exist-ok --overwrite
    """  # noqa: D301  # \b keeps the lines of the examples apart
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported
    log_to_stderr(0)
    logging.getLogger("e2rank_st.publishing").setLevel(logging.INFO)
    with reported_errors("push_to_hub", RuntimeError):
        # Here, so that --help answers at once.
        from e2rank_st.bundled import BUNDLED
        from e2rank_st.publishing import Source, Target, publish_model, write_space

        cards = {one.folder.resolve(): CARDS / one.name / "README.md" for one in BUNDLED.values()}
        if own := cards.get(Path(model).resolve()):
            card, license_file = card or (own if own.is_file() else None), license_file or LICENSE
        source = Source(model, repo_id, card, license_file, adapter, base_model, preset)
        target = Target(repo_id, version, private, exist_ok, overwrite, create_pr)
        # The cards in this repository were rendered here; any other may come from anybody, whatever it says.
        run_card = run_card or (card is not None and card.resolve() in cards.values())
        with TemporaryDirectory() as scratch:
            publish_model(source, target, output or Path(scratch, "build"), dry_run, run_card=run_card)
        if space is not None:
            write_space(repo_id, space)


def run() -> None:
    """Run the command, and end even if threads of the Hub's client still wait for an answer that trickles."""
    try:
        app()
    except SystemExit as end:
        if all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
            raise
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


if __name__ == "__main__":
    run()
