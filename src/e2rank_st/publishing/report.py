"""A model → its way to the Hub, step by step, told in tables on standard output."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi

from e2rank_st.console import Column, show
from e2rank_st.publishing.build import Source, build
from e2rank_st.publishing.hub import HubError
from e2rank_st.publishing.upload import Change, Target, check_target, plan, publish
from e2rank_st.publishing.verification import verify

__all__ = ["publish_model"]

logger = logging.getLogger(__name__)

FILES = (Column("file", share=1, style="cyan"), Column("bytes", ",d"), Column("sha256"))
CHECKS = (Column("check", share=1), Column("difference"), Column("result", share=1, style="bold"))
CHANGES = (Column("revision", style="cyan"), Column("tag"), Column("change", share=1))


def publish_model(
    source: Source,
    target: Target,
    folder: Path,
    dry_run: bool = False,
    api: HfApi | None = None,
    run_card: bool = False,
) -> None:
    """Build, verify and publish a model.

    Args:
        source: The model, and what belongs to it.
        target: Where to publish.
        folder: Where to build.
        dry_run: Whether to end with a plan instead of the upload.
        api: The Hub's client; by default one with the token of this user.
        run_card: Whether to run the Python of the card, which may come from anybody.

    Raises:
        ValueError: The source is broken or tells something private, or a check failed.
        OSError: A file cannot be read.
        HubError: The Hub did not do what was asked.
    """
    if not dry_run:
        check_target(target, api)  # before minutes of building
    built, model = build(source, folder)
    for revision, files in built.files.items():
        total = sum(file.size for file in files)
        show(FILES, [(file.name, file.size, file.sha256[:12]) for file in files], f"{revision}: {total:,} bytes")
    checks = verify(built, model, run_card)
    rows = [
        (
            check.name,
            "" if check.difference is None else f"{check.difference:.1e}",
            check.problem or check.note or "passed",
        )
        for check in checks
    ]
    show(CHECKS, rows, "verified without network and without this package")
    failed = [check for check in checks if check.problem]
    if failed:
        raise ValueError(f"{len(failed)} of {len(checks)} checks failed, so nothing is uploaded: {failed[0].problem}")
    if dry_run:
        title = f"plan for {target.repo_id}; nothing was uploaded"
        try:
            changes = plan(built, target, api)
        except HubError as error:
            logger.warning("The Hub was not asked for its files: %s", error)
            changes = [Change(revision, added=files) for revision, files in built.files.items()]
    else:
        title, changes = f"published at {target.repo_id}", publish(built, target, api)
    show(CHANGES, [(change.revision, target.tag(change.revision), _words(change)) for change in changes], title)


def _words(change: Change) -> str:
    if not change.added and not change.deleted:
        return "already there, no commit"
    counts = f"write {len(change.added)}, delete {len(change.deleted)}, of these replace {len(change.replaced)}"
    return f"{change.pull_request or change.commit[:12] or 'planned'}: {counts}"
