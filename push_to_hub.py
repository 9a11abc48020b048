"""A model → a repository on the Hugging Face Hub that anyone can load, verified before a byte of it is uploaded.

    python push_to_hub.py models/e2rank-minilm-l6 --repo-id org/e2rank-minilm-l6 --dry-run
    python push_to_hub.py build/stage2/final --repo-id org/e2rank --card card.md --private

Standard output lists the files, the checks and the plan; progress and errors go to standard error. The token is that of
``hf auth login``, or HF_TOKEN.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from e2rank_st import __version__
from e2rank_st.console import Column, show

if TYPE_CHECKING:
    from e2rank_st.publishing import Build, Source, Target
    from e2rank_st.publishing.upload import Change

ROOT = Path(__file__).resolve().parent
CARD, LICENSE = ROOT / "model_card" / "README.md", ROOT / "LICENSE"  # of the bundled model
FILES = (Column("file", share=1, style="cyan"), Column("bytes", ",d"), Column("sha256"))
CHECKS = (Column("check", share=1), Column("difference"), Column("result", share=1, style="bold"))
PLAN = (Column("revision", style="cyan"), Column("tag"), Column("files", "d"), Column("what happens", share=1))

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, an adapter's folder, or a Hub id.")],
    repo_id: Annotated[str, typer.Option(metavar="ORG/NAME", help="The repository to publish.")],
    card: Annotated[Path | None, typer.Option(metavar="FILE", help="The card; else the model's README.md.")] = None,
    license_file: Annotated[
        Path | None, typer.Option("--license", metavar="FILE", help="The licence's text; else the model's LICENSE.")
    ] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Publish an adapter as one, not merged.")] = False,
    base_model: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Hub id of an adapter's base that is a folder here.")
    ] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="How to wire a plain checkpoint.")] = None,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest file of weights.")] = "5GB",
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep what is built here.")] = None,
    version: Annotated[str, typer.Option(metavar="1.2.3", help="Tag of the commits.")] = __version__,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    exist_ok: Annotated[bool, typer.Option("--exist-ok", help="Publish into a repository that exists.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other content and tags there.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open pull requests instead of committing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do all but upload.")] = False,
) -> None:
    """Build, verify and publish a model."""
    _log_to_stderr()
    with _one_line_errors():
        # Here, so that --help answers at once.
        from e2rank_st.adapters import bundled_folder
        from e2rank_st.publishing import Source, Target

        if Path(model).resolve() == bundled_folder().resolve():
            card, license_file = card or (CARD if CARD.is_file() else None), license_file or LICENSE
        source = Source(model, repo_id, card, license_file, adapter, base_model, preset, shard_size)
        target = Target(repo_id, version, private, exist_ok, overwrite, create_pr)
        with TemporaryDirectory() as scratch:
            _run(source, target, output or Path(scratch, "build"), dry_run)


def _run(source: Source, target: Target, folder: Path, dry_run: bool) -> None:
    from e2rank_st.publishing import build, check_account, publish, verify

    if not dry_run:
        check_account(target)
    built, model = build(source, folder)
    for revision, files in built.files.items():
        total = sum(file.size for file in files)
        show(FILES, [(file.name, file.size, file.sha256[:12]) for file in files], f"{revision}: {total:,} bytes")
    checks = verify(built, model)
    rows = [
        (check.name, "" if check.difference is None else f"{check.difference:.1e}", check.problem or "passed")
        for check in checks
    ]
    show(CHECKS, rows, "verified without network and without this package")
    failed = [check for check in checks if check.problem]
    if failed:
        raise ValueError(f"{len(failed)} of {len(checks)} checks failed, so nothing is uploaded: {failed[0].problem}")
    if dry_run:
        _show_plan(built, target)
        return
    for change in publish(built.folders, target):
        _show_change(change, target)


def _show_plan(built: Build, target: Target) -> None:
    from e2rank_st.publishing import HubError
    from e2rank_st.publishing.upload import Change, plan

    try:
        changes = plan(built.folders, target)
    except HubError as error:
        typer.echo(f"The Hub was not asked what it holds: {error}", err=True)
        changes = [Change(revision, added=files) for revision, files in built.files.items()]
    rows = []
    for change in changes:
        what = f"write {len(change.added)}, delete {len(change.deleted)}, of these replace {len(change.replaces)}"
        rows.append((change.revision, target.tag(change.revision), len(built.files[change.revision]), what))
    show(PLAN, rows, f"plan for {target.repo_id}; nothing was uploaded")


def _show_change(change: Change, target: Target) -> None:
    what = change.pull_request or (f"{len(change.added)} files written" if change.added else "already there, no commit")
    typer.echo(f"{target.repo_id}@{change.revision}\t{change.commit[:12]}\t{what}")


def _log_to_stderr() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported
    logging.getLogger("e2rank_st.publishing").setLevel(logging.INFO)
    package = logging.getLogger("e2rank_st")
    if not package.handlers:
        package.addHandler(logging.StreamHandler(sys.stderr))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        typer.echo(f"push_to_hub: error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
