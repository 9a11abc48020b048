"""A build → one commit on the Hub for each revision, confirmed by the hashes that the Hub reports.

A revision is the old one or the new one, never something between: its files travel first and become visible in one
commit. After any failure, the same command with --exist-ok goes on from there.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from packaging.version import InvalidVersion, Version

from e2rank_st.publishing.build import Build
from e2rank_st.publishing.contents import File, describe
from e2rank_st.publishing.hub import FAULTS, NOTHING, HubError, ask, may_have_acted

__all__ = ["Change", "Target", "check_target", "plan", "publish"]

logger = logging.getLogger(__name__)

Commits: TypeAlias = dict[str, str]  # name of a branch or tag → its commit

OID = re.compile(r"[0-9a-f]{40}")
HUBS_OWN = ".gitattributes"  # the Hub writes it into a new repository


@dataclass(frozen=True)
class Target:
    """Where to publish, and how much may be changed there.

    Attributes:
        repo_id: The repository's Hub id, ``org/name``.
        version: The commits' tag, as ``v1.2.3``; without code as ``v1.2.3-embedding``.
        private: Whether a new repository is private.
        exist_ok: Whether the repository may exist.
        overwrite: Whether different content, and a tag, may be replaced.
        create_pr: Whether to open pull requests instead of committing.
    """

    repo_id: str
    version: str
    private: bool = False
    exist_ok: bool = False
    overwrite: bool = False
    create_pr: bool = False

    def __post_init__(self) -> None:
        try:
            Version(self.version)
        except InvalidVersion as error:
            raise ValueError(f"Got the version {self.version!r}. Give one such as 1.2.3.") from error

    def tag(self, revision: str) -> str:
        """The tag of a revision."""
        return f"v{self.version}" if revision == "main" else f"v{self.version}-{revision}"


@dataclass
class Change:
    """The effect of publishing on a revision.

    Attributes:
        revision: The branch.
        head: The commit that it is at, or will start at; empty if the repository does not exist.
        added: Files to write, new or changed.
        deleted: Names of files to delete.
        replaced: Names of files on the branch that are changed or deleted.
        commit: The commit that it is at afterwards; empty until then.
        pull_request: The address of the pull request, if one was opened.
        is_open: Whether a commit may be on the Hub that is not confirmed.
    """

    revision: str
    head: str = ""
    added: list[File] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    commit: str = ""
    pull_request: str = ""
    is_open: bool = False


def check_target(target: Target, api: HfApi | None = None) -> None:
    """Find out, before anything is built, whether this user can publish there at all.

    Args:
        target: Where to publish.
        api: The Hub's client; by default one with the token of this user.

    Raises:
        HubError: There is no token, it lacks the rights, the name is taken, or the Hub cannot be asked.
    """
    hub, namespace = _Publication(target, api), target.repo_id.partition("/")[0]
    user, organisations, role = ask("checking the token", lambda: _account(hub.api.whoami()))
    if role == "read":
        problem = (
            f"checking the token: it may only read. Make one with write rights to {namespace} at "
            "https://huggingface.co/settings/tokens, then: hf auth login."
        )
    elif namespace not in (user, *organisations) and not target.create_pr:  # anybody may propose
        problem = (
            f"checking the token: it belongs to {user}, who is not a member of {namespace}. Create or "
            "join that organisation, correct --repo-id, or use a different token."
        )
    elif not target.exist_ok and hub.refs()[0]:
        problem = (
            f"creating the repository: the name {target.repo_id} is taken. Publish into that repository with "
            "--exist-ok, or choose a different name."
        )
    else:
        return
    raise HubError(f"{problem} {NOTHING}")


def _account(answer: dict[str, Any]) -> tuple[str, list[str], str]:
    """The names of a user and of the user's organisations, and the rights of the token."""
    token = answer.get("auth", {}).get("accessToken", {})
    return answer["name"], [organisation["name"] for organisation in answer.get("orgs", [])], token.get("role", "")


def plan(build: Build, target: Target, api: HfApi | None = None) -> list[Change]:
    """Compare a build with the Hub's repository, and change nothing.

    Raises:
        HubError: The Hub cannot be asked.
    """
    hub = _Publication(target, api)
    return hub.compare(build, hub.refs()[0])


def publish(build: Build, target: Target, api: HfApi | None = None) -> list[Change]:
    """Upload a build.

    Args:
        build: The build.
        target: Where to publish.
        api: The Hub's client; by default one with the token of this user.

    Returns:
        The change to each revision.

    Raises:
        HubError: A step failed. The message names it, the revisions that were published, and the way to go on.
    """
    check_target(target, api)
    hub = _Publication(target, api)
    hub.ensure(
        "creating the repository",
        lambda branches, _: branches or hub.api.create_repo(target.repo_id, private=target.private),
    )
    branches, tags = hub.refs()
    changes = hub.compare(build, branches)
    if not target.overwrite and not target.create_pr:
        _refuse_overwriting(changes, tags, target)
    hub.changes = changes
    for change in changes:
        if change.added or change.deleted:
            hub.upload(build, change)
        else:
            change.commit = change.head
            logger.info("%s is up to date at %.12s; no commit.", change.revision, change.head)
    if not target.create_pr:
        for change in changes:
            hub.set_tag(target.tag(change.revision), change.commit)
        hub.check_refs(changes)
    return changes


class _Publication:
    """The steps on the Hub. Their errors tell how far this publication came."""

    def __init__(self, target: Target, api: HfApi | None) -> None:
        self.target = target
        self.repo_id = target.repo_id
        self.api = api or HfApi()
        self.changes: list[Change] = []

    def refs(self) -> tuple[Commits, Commits]:
        """The commits of the branches and of the tags; both empty if the repository does not exist."""
        return ask("reading the repository", self._refs, self._state)

    def ensure(self, step: str, act: Callable[[Commits, Commits], object], retries: bool = True, size: int = 0) -> None:
        """Do a step. Each try looks first: an earlier one may have done it, and only the answer got lost."""
        ask(step, lambda: act(*self._refs()), self._state, retries, size)

    def compare(self, build: Build, branches: Commits) -> list[Change]:
        """The change that makes each branch equal to the build."""

        def one(revision: str, files: list[File]) -> Change:
            if not branches:
                return Change(revision, added=files)
            if revision in branches:
                return self._compare(revision, files, branches[revision])
            # A new branch starts at the first commit, and replaces nothing.
            first = self.api.list_repo_commits(self.repo_id)[-1].commit_id
            return replace(self._compare(revision, files, first), replaced=[])

        every, size = build.files.items(), sum(map(_size, build.files.values()))
        return ask("reading the repository", lambda: [one(*item) for item in every], self._state, False, size)

    def upload(self, build: Build, change: Change) -> None:
        """Commit a change, and confirm it."""
        name, files, folder = change.revision, build.files[change.revision], build.folders[change.revision]
        self.ensure(
            f"creating the branch {name}",
            lambda branches, _: (
                name in branches or self.api.create_branch(self.repo_id, branch=name, revision=change.head)
            ),
        )
        step, size = f"committing {name}", _size(change.added)

        def prepare() -> list[Any]:
            added = [CommitOperationAdd(file.name, folder / file.name) for file in change.added]
            return [*added, *(CommitOperationDelete(file) for file in change.deleted)]

        # Outside of the tries, since each of these reads a whole file for its hash.
        operations = ask(step, prepare, self._state, False, size)

        def commit(branches: Commits, _: Commits) -> None:
            if branches.get(name, change.head) != change.head:
                there = self._compare(name, files, branches[name])
                if not there.added and not there.deleted:  # an earlier try made the commit
                    change.commit, change.is_open = there.head, True
                    return
            self._commit(change, operations)

        # A second try could open a second pull request.
        self.ensure(step, commit, retries=not self.target.create_pr, size=size)
        step = f"confirming {name}"
        wrong = ask(step, lambda: self._compare(name, files, change.commit), self._state, False, _size(files))
        if wrong.added or wrong.deleted:
            names = ", ".join([*(file.name for file in wrong.added), *wrong.deleted])
            raise HubError(
                f"{step}: the Hub reports different content than was sent for {names}. Do not trust the commit "
                f"{change.commit:.12}. Run this again with --exist-ok --overwrite; if the error stays, revert the "
                f"commit at https://huggingface.co/{self.repo_id}/commits/{name}."
            )
        change.is_open = False
        logger.info("%s is published at %.12s, confirmed by hashes that the Hub reports.", name, change.commit)

    def set_tag(self, tag: str, commit: str) -> None:
        """Put a tag at a commit."""

        def put(_: Commits, tags: Commits) -> None:
            if tags.get(tag) == commit:
                return
            if tag in tags and self.target.overwrite:
                self.api.delete_tag(self.repo_id, tag=tag)
            self.api.create_tag(self.repo_id, tag=tag, revision=commit)

        self.ensure(f"setting the tag {tag}", put)

    def check_refs(self, changes: Sequence[Change]) -> None:
        """Read branches and tags back: the Hub's word that it set one is not enough."""
        branches, tags = self.refs()
        for change in changes:
            for kind, name, refs in (
                ("branch", change.revision, branches),
                ("tag", self.target.tag(change.revision), tags),
            ):
                if refs.get(name) != change.commit:
                    there = f"at {refs[name]:.12}" if name in refs else "not there"
                    raise HubError(
                        f"confirming the {kind} {name}: the Hub said that it is at {change.commit:.12}, but it is "
                        f"{there}. {self._state()}"
                    )

    def _state(self) -> str:
        doubtful = ", ".join(change.revision for change in self.changes if change.is_open)
        if doubtful and self.target.create_pr:
            return f"A pull request to {doubtful} may have been opened: look before you run this again."
        done = ", ".join(
            f"{change.revision} ({change.commit:.12})"
            for change in self.changes
            if change.commit and not change.is_open and (change.added or change.deleted)
        )
        facts = [f"Published and confirmed so far: {done}."] if done else []
        if doubtful:
            facts.append(f"The commit to {doubtful} may be on the Hub, but that was not confirmed.")
        return " ".join([*facts, "The same command with --exist-ok goes on from there."]) if facts else NOTHING

    def _refs(self) -> tuple[Commits, Commits]:
        try:
            refs = self.api.list_repo_refs(self.repo_id)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:  # a wrong token, which says nothing about the repository
                raise
            return {}, {}
        branches, tags = ({ref.name: _oid(ref.target_commit) for ref in some} for some in (refs.branches, refs.tags))
        return branches, tags

    def _compare(self, revision: str, files: Sequence[File], commit: str) -> Change:
        entries = self.api.list_repo_tree(self.repo_id, recursive=True, revision=commit)
        there = {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and entry.path != HUBS_OWN}
        added = [file for file in files if file.name not in there or not self._is_same(file, there[file.name], commit)]
        deleted = sorted(set(there) - {file.name for file in files})
        return Change(revision, commit, added, deleted, [file.name for file in added if file.name in there] + deleted)

    def _is_same(self, file: File, there: RepoFile, commit: str) -> bool:
        if there.lfs:
            return file.sha256 == there.lfs.sha256
        if there.blob_id and not there.xet_hash:  # with one, the blob may be a pointer to the content
            return file.blob == there.blob_id
        with TemporaryDirectory() as folder:
            path = self.api.hf_hub_download(self.repo_id, file.name, revision=commit, local_dir=folder)
            return describe(Path(path), Path(folder)) == file

    def _commit(self, change: Change, operations: list[Any]) -> None:
        change.is_open = True  # before the deadline may leave the call behind
        try:
            info = self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=f"Version {self.target.version}, {change.revision}",
                revision=change.revision,
                parent_commit=change.head,  # a commit of somebody else is not overwritten
                create_pr=self.target.create_pr,
            )
        except FAULTS as error:
            change.is_open = may_have_acted(error)
            raise
        change.commit, change.pull_request = _oid(info.oid), info.pr_url or ""


def _size(files: Sequence[File]) -> int:
    return sum(file.size for file in files)


def _oid(commit: Any) -> str:
    """The hash of a commit, if it is one."""
    if not isinstance(commit, str) or not OID.fullmatch(commit):
        raise TypeError(f"{commit!r:.60} is not the hash of a commit")
    return commit


def _refuse_overwriting(changes: Sequence[Change], tags: Mapping[str, str], target: Target) -> None:
    advice = "Look at it, then replace it with --overwrite or propose it with --create-pr. Nothing was published."
    for change in changes:
        if change.replaced:
            names = ", ".join(change.replaced[:5]) + (", ..." if len(change.replaced) > 5 else "")
            raise HubError(f"{change.revision} of {target.repo_id} has different content in {names}. {advice}")
        there = tags.get(tag := target.tag(change.revision))
        if there and (there != change.head or change.added):
            raise HubError(f"The tag {tag} is at a different commit, {there:.12}. {advice}")
