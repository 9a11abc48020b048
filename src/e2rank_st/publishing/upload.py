"""Built folders → commits on the Hub, one a revision, each of them downloaded again and compared.

A revision is what it was or what was built, never something between: its files travel first and become visible in one
commit. Whatever fails, running the same command again goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import GitRefInfo, GitRefs, RepoFile
from packaging.version import InvalidVersion, Version

from e2rank_st.publishing.contents import File, describe, list_files
from e2rank_st.publishing.hub import CREATING, FAULTS, HubError, Patience, explain, is_passing, status_of

__all__ = ["Change", "Target", "check_account", "plan", "publish"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
HUBS_OWN = {".gitattributes"}  # the Hub writes it into a new repository
READ_ONLY = {"read"}


@dataclass(frozen=True)
class Target:
    """Where to publish, and how much may be changed there.

    Attributes:
        repo_id: The repository's Hub id, ``org/name``.
        version: What the commits are tagged with, as ``v1.2.3``; without code as ``v1.2.3-embedding``.
        private: Whether a new repository is private.
        exist_ok: Whether the repository may exist.
        overwrite: Whether a revision with other content, and a tag, may be replaced.
        create_pr: Whether to open pull requests instead of committing.
    """

    repo_id: str
    version: str
    private: bool = False
    exist_ok: bool = False
    overwrite: bool = False
    create_pr: bool = False

    def __post_init__(self) -> None:
        if _version(self.version) is None:
            raise ValueError(f"Got the version {self.version!r}; it must be one as of a Python package, such as 1.2.3.")

    def tag(self, revision: str) -> str:
        """The tag of a revision."""
        return f"v{self.version}" if revision == "main" else f"v{self.version}-{revision}"


@dataclass
class Change:
    """What publishing does to a revision.

    Attributes:
        revision: The branch.
        head: The commit that it is at; empty where there is no such branch.
        added: Files to write, new or changed.
        deleted: Names of files to delete.
        replaces: Names of files that are there with other content, or would be deleted.
        commit: What the revision is at afterwards; empty until it is confirmed.
        pull_request: Its address, where one was opened.
        is_open: Whether a commit may be on the Hub that is not confirmed.
    """

    revision: str
    head: str = ""
    added: list[File] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    replaces: list[str] = field(default_factory=list)
    commit: str = ""
    pull_request: str = ""
    is_open: bool = False


def plan(folders: Mapping[str, Path], target: Target, api: HfApi | None = None) -> list[Change]:
    """Compare what was built with what is on the Hub, and change nothing.

    Args:
        folders: The folder of each revision.
        target: Where to publish.
        api: The Hub's client.

    Returns:
        What publishing would do to each revision.

    Raises:
        HubError: The Hub cannot be asked.
    """
    return _Publication(folders, target, api or HfApi(), Patience()).plan()


def check_account(target: Target, api: HfApi | None = None) -> None:
    """Find out, before anything is built, whether this user can publish there at all.

    Args:
        target: Where to publish.
        api: The Hub's client; by default one with the token of this user.

    Raises:
        HubError: There is no token, it has not the rights, or the Hub cannot be asked.
    """
    _Publication({}, target, api or HfApi(), Patience()).check_account()


def publish(
    folders: Mapping[str, Path], target: Target, api: HfApi | None = None, patience: Patience | None = None
) -> list[Change]:
    """Upload what was built.

    Args:
        folders: The folder of each revision.
        target: Where to publish.
        api: The Hub's client; by default one with the token of this user, from where the Hub's tools keep it.
        patience: How long to wait for the Hub.

    Returns:
        What was done to each revision.

    Raises:
        HubError: Something went wrong; the message says what, what was published nevertheless, and what to do.
    """
    return _Publication(folders, target, api or HfApi(), patience or Patience()).publish()


class _Publication:
    def __init__(self, folders: Mapping[str, Path], target: Target, api: HfApi, patience: Patience) -> None:
        self.folders = folders
        self.target = target
        self.api = api
        self.patience = patience
        self.changes: list[Change] = []
        self.is_new = False

    def plan(self) -> list[Change]:
        refs = self._call("reading the repository", self._refs)
        return [self._change(revision, refs) for revision in self.folders]

    def publish(self) -> list[Change]:
        self.check_account()
        refs = self._repository()
        changes = [self._change(revision, refs) for revision in self.folders]
        self._refuse_overwriting(changes, refs)
        self.changes = changes
        for change in changes:
            if change.added or change.deleted:
                self._upload(change)
                continue
            if self.target.tag(change.revision) not in {tag.name for tag in refs.tags}:
                self._confirm(change, change.head)  # an earlier run may have ended before it did
            change.commit = change.head
            logger.info("%s is up to date at %.12s; no commit.", change.revision, change.head)
        if not self.target.create_pr:
            self._tag(changes, refs)
        return changes

    def _call(self, step: str, do: Callable[[], T], done: Callable[[], T | None] | None = None) -> T:
        with self._explained(step):
            return self.patience.call(step, do, done)

    @contextmanager
    def _explained(self, step: str) -> Iterator[None]:
        try:
            yield
        except HubError:
            raise
        except FAULTS as error:
            raise HubError(f"{explain(error, step, self.target.repo_id)} {self._state()}") from error

    def _state(self) -> str:
        """What of all this is on the Hub by now."""
        doubtful = ", ".join(change.revision for change in self.changes if change.is_open)
        if doubtful and self.target.create_pr:
            return f"A pull request to {doubtful} may have been opened: look before you run this again."
        if doubtful:
            return (
                f"What was built for {doubtful} may be on the Hub already, but that was not confirmed. "
                "The same command with --exist-ok looks, and goes on from there."
            )
        there = [change for change in self.changes if change.commit and (change.added or change.deleted)]
        if there:
            done = ", ".join(f"{change.revision} ({change.commit:.12})" for change in there)
            return f"Published and confirmed so far: {done}. The same command with --exist-ok goes on from here."
        if self.is_new:
            return "The new repository is still empty. The same command with --exist-ok goes on from here."
        return "Nothing was published."

    def check_account(self) -> None:
        """See :func:`check_account`."""
        account: dict[str, Any] = self._call("checking the token", self.api.whoami)
        role = account.get("auth", {}).get("accessToken", {}).get("role")
        namespace = self.target.repo_id.partition("/")[0]
        if role in READ_ONLY:
            raise HubError(
                f"checking the token: it may only read. Make one with write rights to {namespace} at "
                "https://huggingface.co/settings/tokens, then: hf auth login. Nothing was published."
            )
        members = [account.get("name"), *(organisation.get("name") for organisation in account.get("orgs", []))]
        if namespace not in members and not self.target.create_pr:  # anybody may propose
            raise HubError(
                f"checking the token: it belongs to {account.get('name')}, who is no member of {namespace}. Create or "
                "join that organisation, correct --repo-id, or use another token. Nothing was published."
            )

    def _refs(self) -> GitRefs | None:
        try:
            return self.api.list_repo_refs(self.target.repo_id)
        except RepositoryNotFoundError as error:
            # Without a token, or with a wrong one, the Hub answers 401 to this; that is no missing repository.
            if error.response.status_code == 401:
                raise
            return None

    def _repository(self) -> GitRefs:
        """The branches and tags of the repository, which is created where there is none."""
        refs = self._call("reading the repository", self._refs)
        if refs is None:
            self._call(
                CREATING,
                lambda: str(self.api.create_repo(self.target.repo_id, private=self.target.private, exist_ok=False)),
                lambda: self.target.repo_id if self._refs() else None,
            )
            self.is_new = True
            refs = self._call("reading the repository", self._refs)
        elif not self.target.exist_ok:
            raise HubError(
                f"{CREATING}: the name {self.target.repo_id} is taken. Publish into that repository with "
                "--exist-ok, or choose another name. Nothing was published."
            )
        if refs is None:
            raise HubError("reading the repository: it was created and is not there. Run this again with --exist-ok.")
        return refs

    def _change(self, revision: str, refs: GitRefs | None) -> Change:
        files = list_files(self.folders[revision])
        heads = {branch.name: branch.target_commit for branch in refs.branches} if refs else {}
        if revision not in heads:
            return Change(revision, added=files)
        remote = self._call(f"reading {revision}", lambda: self._remote_files(heads[revision]))
        added = [file for file in files if not _is_same(file, remote.get(file.name))]
        deleted = sorted(set(remote) - {file.name for file in files})
        replaces = [file.name for file in added if file.name in remote] + deleted
        return Change(revision, heads[revision], added, deleted, replaces)

    def _remote_files(self, commit: str) -> dict[str, RepoFile]:
        entries = self.api.list_repo_tree(self.target.repo_id, recursive=True, revision=commit)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and entry.path not in HUBS_OWN}

    def _refuse_overwriting(self, changes: Sequence[Change], refs: GitRefs) -> None:
        if self.target.overwrite or self.target.create_pr:
            return
        advice = "Look at it, then replace it with --overwrite or propose it with --create-pr. Nothing was published."
        for change in changes:
            if change.replaces:
                names = ", ".join(change.replaces[:5]) + (", ..." if len(change.replaces) > 5 else "")
                raise HubError(f"{change.revision} of {self.target.repo_id} has other content in {names}. {advice}")
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        newer = [tag for tag in tags if (version := _version(tag)) and version > Version(self.target.version)]
        if newer:
            raise HubError(f"{self.target.repo_id} has the newer {', '.join(newer)}. {advice}")
        for change in changes:
            there = tags.get(tag := self.target.tag(change.revision))
            if there and (there != change.head or change.added):
                raise HubError(f"The tag {tag} is at another commit, {there:.12}. {advice}")

    def _upload(self, change: Change) -> None:
        if not change.head:
            change.head = self._call(f"creating the branch {change.revision}", lambda: self._branch(change.revision))
            first = self._call(f"reading {change.revision}", lambda: self._remote_files(change.head))
            change.deleted = sorted(set(first) - {file.name for file in change.added})
        step = f"committing {change.revision}"
        commit, pull_request = self._call(step, lambda: self._commit(change), lambda: self._committed(change))
        self._confirm(change, commit)
        change.commit, change.pull_request, change.is_open = commit, pull_request, False
        logger.info("%s is published at %.12s and was confirmed by a download.", change.revision, commit)

    def _branch(self, revision: str) -> str:
        """Start a branch at the first commit, where a repository is still empty."""
        first = self.api.list_repo_commits(self.target.repo_id)[-1].commit_id
        self.api.create_branch(self.target.repo_id, branch=revision, revision=first, exist_ok=True)
        return first

    def _commit(self, change: Change) -> tuple[str, str]:
        folder = self.folders[change.revision]
        operations: list[Any] = [CommitOperationAdd(file.name, folder / file.name) for file in change.added]
        operations += [CommitOperationDelete(name) for name in change.deleted]
        try:
            info = self.api.create_commit(
                self.target.repo_id,
                operations,
                commit_message=f"Version {self.target.version}, {change.revision}",
                revision=change.revision,
                parent_commit=change.head,  # whoever commits meanwhile is not overwritten
                create_pr=self.target.create_pr,
            )
        except FAULTS as error:
            change.is_open = is_passing(error)
            raise
        change.is_open = True
        return info.oid, info.pr_url or ""

    def _committed(self, change: Change) -> tuple[str, str] | None:
        """The commit that was made although its answer got lost."""
        refs = self._refs()
        heads = {branch.name: branch.target_commit for branch in refs.branches} if refs else {}
        head = heads.get(change.revision, change.head)
        if self.target.create_pr:
            return None
        if head == change.head:
            change.is_open = False
            return None
        remote = self._remote_files(head)
        files = {file.name: file for file in list_files(self.folders[change.revision])}
        is_ours = set(remote) == set(files) and all(_is_same(files[name], remote[name]) for name in files)
        return (head, "") if is_ours else None

    def _confirm(self, change: Change, commit: str) -> None:
        """Download a commit, file by file, and compare the hashes."""
        step = f"downloading {change.revision} again"
        expected = {file.name: file for file in list_files(self.folders[change.revision])}
        remote = self._call(step, lambda: self._remote_files(commit))
        wrong = sorted(set(remote) ^ set(expected))
        for name in sorted(set(remote) & set(expected)):
            if self._call(step, partial(self._download, name, commit)) != expected[name]:
                wrong.append(name)
        if wrong:
            raise HubError(
                f"{step}: {', '.join(wrong)} came back with another content than was built. The commit {commit:.12} is "
                f"on the Hub and must not be trusted. Run this again with --exist-ok --overwrite; if it stays, revert "
                f"the commit at https://huggingface.co/{self.target.repo_id}/commits/{change.revision}."
            )

    def _download(self, name: str, commit: str) -> File:
        with TemporaryDirectory() as folder:
            path = Path(self.api.hf_hub_download(self.target.repo_id, name, revision=commit, local_dir=folder))
            return describe(path, Path(folder))

    def _tag(self, changes: Sequence[Change], refs: GitRefs) -> None:
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        for change in changes:
            tag = self.target.tag(change.revision)
            if tags.get(tag) == change.commit:
                continue
            if tag in tags:
                self._call(f"moving the tag {tag}", partial(self._delete_tag, tag))
            self._call(f"creating the tag {tag}", partial(self._create_tag, tag, change.commit))

    def _delete_tag(self, tag: str) -> None:
        try:
            self.api.delete_tag(self.target.repo_id, tag=tag)
        except HfHubHTTPError as error:
            # It may be gone, since the answer to an earlier try got lost.
            if status_of(error) != 404 or any(there.name == tag for there in self._tags()):
                raise

    def _create_tag(self, tag: str, commit: str) -> None:
        try:
            self.api.create_tag(self.target.repo_id, tag=tag, revision=commit)
        except HfHubHTTPError as error:
            # It may be there, since the answer to an earlier try got lost; then it is at this commit.
            tags = self._tags() if status_of(error) == 409 else []
            if not any(there.name == tag and there.target_commit == commit for there in tags):
                raise

    def _tags(self) -> list[GitRefInfo]:
        return self.api.list_repo_refs(self.target.repo_id).tags


def _is_same(file: File, there: RepoFile | None) -> bool:
    if there is None:
        return False
    return file.sha256 == there.lfs.sha256 if there.lfs else file.blob == there.blob_id


def _version(tag: str) -> Version | None:
    try:
        return Version(tag)
    except InvalidVersion:
        return None
