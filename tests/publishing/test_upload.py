"""Upload: whatever the Hub does, a revision is what it was or what was built, and the message says what to do."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from e2rank_st.publishing import Build, HubError, Target, hub, plan, publish
from e2rank_st.publishing.contents import describe
from tests.hub_server import Fault, HubServer

CARD = "---\nlicense: apache-2.0\n---\n# A model\n"
TARGET = Target("org/e2rank", "1.0.0")
AGAIN = replace(TARGET, exist_ok=True)
ANEW = replace(AGAIN, overwrite=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two revisions that share their weights."""
    for revision in ("main", "embedding"):
        folder = tmp_path / "build" / revision
        (folder / "1_Pooling").mkdir(parents=True)
        (folder / "README.md").write_text(f"{CARD}{revision}\n")
        (folder / "1_Pooling" / "config.json").write_text("{}\n")
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 2000)
    (tmp_path / "build" / "main" / "modeling_e2rank.py").write_text("# code\n")
    return tmp_path / "build"


@pytest.fixture
def send(api: HfApi, folder: Path) -> Callable:
    """Publish the folder as it is."""
    return lambda target, client=api: publish(read(folder), target, client)


def read(folder: Path) -> Build:
    files = {
        revision: [describe(path, folder / revision) for path in sorted((folder / revision).rglob("*.*"))]
        for revision in ("main", "embedding")
    }
    return Build(folder, "org/e2rank", {}, files)


def is_published(server: HubServer, folder: Path, *revisions: str) -> bool:
    return all(
        server.files("org/e2rank", revision)
        == {file.name: (folder / revision / file.name).read_bytes() for file in read(folder).files[revision]}
        for revision in revisions or ("main", "embedding")
    )


def is_complete(server: HubServer, folder: Path) -> bool:
    """Both revisions, each by one commit, and both tags."""
    repository = server.repositories["org/e2rank"]
    tags = {"v1.0.0": repository.resolve("main"), "v1.0.0-embedding": repository.resolve("embedding")}
    return is_published(server, folder) and len(repository.commits) == 3 and repository.tags == tags


def change_card(folder: Path, text: str = "Better.\n") -> None:
    (folder / "main" / "README.md").write_text(CARD + text)


def test_publish_unchanged_and_a_new_card(server: HubServer, api: HfApi, send, folder, caplog):
    """Guards against files lost on the way, commits without a change, and a second upload of the same weights."""
    with caplog.at_level(logging.INFO, "e2rank_st"):
        assert [change.head for change in plan(read(folder), TARGET, api)] == ["", ""]
        assert not server.repositories, "a plan changes nothing"
        first = send(replace(TARGET, private=True))
    assert server.token not in caplog.text
    assert "confirmed by hashes that the Hub reports" in caplog.text
    repository = server.repositories["org/e2rank"]
    assert repository.private
    assert is_complete(server, folder)
    assert list(repository.tags.values()) == [change.commit for change in first]
    assert server.sent("PUT", "/lfs/") == 1
    send(AGAIN)
    assert len(repository.commits) == 3

    change_card(folder)
    with pytest.raises(HubError, match=r"main of org/e2rank has different content in README\.md\. .*--overwr.*Nothing"):
        send(AGAIN)
    assert len(repository.commits) == 3
    changes = send(ANEW)
    assert [[file.name for file in change.added] for change in changes] == [["README.md"], []]
    assert (len(repository.commits), server.sent("PUT", "/lfs/")) == (4, 1)
    assert repository.tags["v1.0.0"] == changes[0].commit, "the tag moved along"
    (folder / "main" / "modeling_e2rank.py").rename(folder / "main" / "other.py")
    assert [change.deleted for change in send(ANEW)] == [["modeling_e2rank.py"], []], "old code does not live on"
    assert is_published(server, folder)
    assert server.sent("GET", "/resolve/") == 0, "the Hub's hashes are enough: an 8B model is 16 GB"


def test_pull_requests(server: HubServer, send, folder):
    """Guards against a proposal that is a commit, one that only members may make, and a second one after a fault."""
    send(TARGET)
    server.organisations.clear()
    change_card(folder)
    before = server.files("org/e2rank", "main")
    change, other = send(replace(AGAIN, create_pr=True))
    assert change.pull_request.endswith("/discussions/1")
    assert not other.pull_request
    assert server.files("org/e2rank", "main") == before
    server.faults.append(Fault("POST", "/commit/", times=1, acts=True))
    with pytest.raises(HubError, match="pull request to main may have been opened: look before"):
        send(replace(AGAIN, create_pr=True))
    assert len(server.repositories["org/e2rank"].pulls) == 2


@pytest.mark.parametrize(
    ("prepare", "target", "message"),
    [
        (lambda server: server.create("org/e2rank"), TARGET, r"name org/e2rank is taken\. .*--exist-ok"),
        (lambda server: server.organisations.clear(), TARGET, r"tester, who is not a member of org\. Create or join"),
        (lambda server: setattr(server, "role", "read"), TARGET, r"may only read\. Make one with write rights to org"),
        (lambda server: setattr(server, "token", "hf_other"), TARGET, r"Invalid user token.*HF_TOKEN"),
        (lambda server: server.create("org/e2rank").tags.update({"v1.0.0": "0" * 40}), AGAIN, r"tag v1\.0\.0 is at a "),
    ],
)
def test_refused_before_anything_is_sent(server: HubServer, send, prepare, target, message):
    """Guards against gigabytes that are uploaded before it turns out that they may not be."""
    prepare(server)
    with pytest.raises(HubError, match=message) as caught:
        send(target)
    assert "Nothing was published" in str(caught.value)
    assert not [request for request in server.requests if request[0] in {"POST", "PUT", "DELETE"}]


def test_no_token_no_network_and_no_version(server: HubServer, send, monkeypatch, waits):
    """Guards against a traceback, hours of waiting because a server asks for it, and a tag that the Hub refuses."""
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"no token found.*hf auth login"):
        send(TARGET)
    monkeypatch.setenv("HF_TOKEN", server.token)
    with pytest.raises(HubError, match=r"connection failed\. Check network, proxy and HF_ENDPOINT"):
        send(TARGET, HfApi(endpoint="http://127.0.0.1:9"))
    server.faults.append(Fault("GET", "whoami", 429, retry_after="86400", times=1))
    send(TARGET)
    assert waits == [1, 2, 4, 60]
    with pytest.raises(ValueError, match=r"Got the version 'a b'\. .*1\.2\.3"):
        replace(TARGET, version="a b")


# Every endpoint that publishing uses, as method and path.
ENDPOINTS = {
    "whoami": ("GET", "whoami"),
    "refs": ("GET", "/refs$"),
    "create": ("POST", "repos/create"),
    "tree": ("GET", "/tree/"),
    "yaml": ("POST", "validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "objects/batch"),
    "upload": ("PUT", "/lfs/"),
    "commit": ("POST", "/commit/"),
    "history": ("GET", "/commits/"),
    "branch": ("POST", "/branch/"),
    "tag": ("POST", "/tag/"),
}
STATUSES = (401, 403, 404, 409, 413, 429, 500, 0)
PASSING = (429, 500, 0)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_lasting_faults(server: HubServer, send, folder, endpoint):
    """Guards against a half-published revision, a false success, and a wrong report of the state; at every endpoint."""
    for status in STATUSES:
        server.repositories.clear()
        server.blobs.clear()
        server.faults[:] = [Fault(*ENDPOINTS[endpoint], status)]
        case = f"{endpoint}: {status}"
        with pytest.raises(HubError) as caught:
            send(TARGET)
        message = str(caught.value)
        assert server.token not in message, case
        assert any(word in message for word in ("Nothing was", "so far", "not confirmed")), message
        if "org/e2rank" in server.repositories:
            history = server.repositories["org/e2rank"].history
            for revision in [name for name, commits in history.items() if len(commits) > 1]:
                assert revision in message, (case, message)
                assert is_published(server, folder, revision), case
        server.faults.clear()
        send(AGAIN)  # the same command goes on from there
        assert is_complete(server, folder), case


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_passing_faults(server: HubServer, send, folder, endpoint, waits):
    """Guards against giving up at once, and doing twice what was done: the Hub may act, and its answer never come.

    The Hub's own waiting time is kept, plus the second that the client adds.
    """
    for fault in ({"status": 429, "retry_after": "7"}, {"status": 500}, {"status": 0}, {"acts": True}):
        server.repositories.clear()
        server.blobs.clear()
        waits.clear()
        server.faults[:] = [Fault(*ENDPOINTS[endpoint], **fault, times=1)]
        send(TARGET)
        assert is_complete(server, folder), fault
        assert waits in ([[7], [8]] if "retry_after" in fault else [[1]]), (fault, waits)


# Answers of a proxy, a login page, another service, and of a Hub that has changed.
FOREIGN = (
    b"[]", b"{}", b"null", b"<html>Log in</html>", b"\xff", b"[" * 3000,
    b'{"name": 1, "orgs": [1], "branches": [{"name": "x", "ref": "", "targetCommit": 1}], "tags": [], "objects": [1]}',
    b'[{"type": "file", "path": 5, "oid": 6, "size": "7", "lfs": {}, "id": 8}]',
)  # fmt: skip


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_foreign_answers(server: HubServer, send, folder, endpoint):
    """Guards against a KeyError from inside the client, and a success that nobody made, at every endpoint."""
    for answer in FOREIGN:
        server.repositories.clear()
        server.blobs.clear()
        server.faults[:] = [Fault(*ENDPOINTS[endpoint], answer=answer)]
        try:
            send(TARGET)
        except HubError as error:
            state = ("Nothing was", "so far", "not confirmed", "Do not trust")
            assert any(words in str(error) for words in state), str(error)
            assert "\n" not in str(error)
        else:
            assert is_complete(server, folder), answer
        server.faults.clear()
        send(AGAIN)
        assert is_complete(server, folder), answer


@pytest.mark.parametrize("made", ["tag", "branch", "commit"])
def test_a_hub_that_only_says_so(server: HubServer, send, folder, made):
    """Guards against a success that is reported, although what the Hub said that it made is not there."""
    server.faults.append(Fault(*ENDPOINTS[made], answer=b'{"commitOid": "%s", "commitUrl": "x"}' % (b"0" * 40)))
    messages = {
        "tag": r"confirming the tag v1\.0\.0: the Hub said that it is at \w+, but it is not there\. Published.*main",
        "branch": r"committing embedding: .*Published and confirmed so far: main",
        "commit": r"committing main: .*may be on the Hub, but that was not confirmed",
    }
    with pytest.raises(HubError, match=messages[made]):
        send(TARGET)
    server.faults.clear()
    send(AGAIN)
    assert is_complete(server, folder)


def test_a_branch_that_does_not_move(server: HubServer, api: HfApi, send, folder, monkeypatch):
    """Guards against a success where the commit is there, but nobody finds it under the branch's name."""
    send(TARGET)
    change_card(folder)
    old = server.repositories["org/e2rank"].resolve("main")
    real = api.create_commit

    def moved_back(*arguments, **options):
        info = real(*arguments, **options)
        server.repositories["org/e2rank"].history["main"].append(old)
        return info

    monkeypatch.setattr(api, "create_commit", moved_back)
    with pytest.raises(HubError, match=rf"confirming the branch main: .* but it is at {old:.12}"):
        send(ANEW)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("asked", [{"Retry-After": "999999999"}, {"ratelimit": '"api";r=0;t=999999999'}])
def test_nobody_waits_for_years(server: HubServer, send, folder, endpoint, asked, waits):
    """Guards against a server that tells the client to sleep, at every endpoint and in both headers."""
    server.faults.append(Fault(*ENDPOINTS[endpoint], 429, headers=asked, times=1))
    send(TARGET)
    assert is_complete(server, folder)
    assert 0 < sum(waits) <= 61, waits


@pytest.mark.parametrize(
    ("endpoint", "part"),
    [
        ("whoami", "body"),
        ("refs", "head"),
        ("tree", "body"),
        ("preupload", "head"),
        ("batch", "body"),
        ("upload", "head"),
        ("commit", "body"),
    ],
)
def test_a_server_that_trickles(server: HubServer, send, folder, endpoint, part, monkeypatch):
    """Guards against hours for an answer that comes a byte at a time, and a wrong report of the state afterwards."""
    monkeypatch.setattr(hub, "DEADLINE", 0.7)
    monkeypatch.setattr(hub, "SLOWEST", 1e9)
    server.faults.append(Fault(*ENDPOINTS[endpoint], trickles=part))
    with pytest.raises(HubError, match=r"did not answer in full within 1 s\. .*(Nothing was|not confirmed)") as caught:
        send(TARGET)
    assert ("not confirmed" in str(caught.value)) == (endpoint in {"preupload", "batch", "upload", "commit"})


def test_moving_a_tag(server: HubServer, send, folder):
    """Guards against a tag that is lost or stays behind, whatever happens when it is deleted to be set anew."""
    send(TARGET)
    repository = server.repositories["org/e2rank"]
    faults = [Fault("DELETE", "/tag/", status) for status in STATUSES]
    faults += [Fault("DELETE", "/tag/", status, times=1) for status in PASSING]
    faults += [Fault("DELETE", "/tag/", times=1, acts=True)]
    for number, fault in enumerate(faults):
        change_card(folder, f"{number}\n")
        server.faults[:] = [fault]
        if fault.times > 1:
            with pytest.raises(HubError, match=r"setting the tag v1\.0\.0: .*so far: main"):
                send(ANEW)
            server.faults.clear()
        send(ANEW)
        assert repository.tags["v1.0.0"] == repository.resolve("main"), fault


def test_a_lost_answer_and_then_no_hub(server: HubServer, send, folder):
    """Guards against "nothing was published" where the commit was made and nobody can be asked any more."""
    server.faults[:] = [Fault("POST", "/commit/", acts=True), Fault("GET", "/refs$", after=5)]
    with pytest.raises(HubError, match=r"commit to main may be on the Hub, but .*--exist-ok"):
        send(TARGET)
    assert is_published(server, folder, "main")
    server.faults.clear()
    send(AGAIN)
    assert is_complete(server, folder)


def test_wrong_hashes(server: HubServer, send, folder):
    """Guards against a success, and a tag, although the Hub reports different content than was sent."""
    server.faults.append(Fault("GET", "/tree/", corrupts=True, after=2))
    with pytest.raises(HubError, match=r"different content than was sent for .*model\.safetensors.*Do not trust"):
        send(TARGET)
    with pytest.raises(HubError, match="main of org/e2rank has different content"):
        send(AGAIN)
    with pytest.raises(HubError, match="Do not trust"):
        send(ANEW)
    assert not server.repositories["org/e2rank"].tags
    server.faults.clear()
    send(AGAIN)
    assert is_published(server, folder)


def test_files_without_hashes(server: HubServer, send, folder):
    """Guards against files that nobody compared: a file whose hash the Hub does not tell is downloaded."""
    server.unhashed |= {"model.safetensors", "README.md"}
    send(TARGET)
    assert is_published(server, folder)
    assert server.sent("GET", "/resolve/") == 4, "two files of two revisions"
    server.faults.append(Fault("GET", "/resolve/.*/model.safetensors", corrupts=True))
    with pytest.raises(HubError, match=r"different content in model\.safetensors"):
        send(AGAIN)


def test_somebody_else_commits_meanwhile(server: HubServer, api: HfApi, send, folder, monkeypatch):
    """Guards against overwriting a commit between the look and the upload."""
    send(TARGET)
    change_card(folder, "Ours.\n")
    repository, real = server.repositories["org/e2rank"], api.preupload_lfs_files

    def interrupted(*arguments, **options):
        server.commit(repository, "main", {"README.md": b"theirs"})
        real(*arguments, **options)

    monkeypatch.setattr(api, "preupload_lfs_files", interrupted)
    with pytest.raises(HubError, match="Somebody else changed the repository meanwhile"):
        send(ANEW)
    assert server.files("org/e2rank", "main") == {"README.md": b"theirs"}


@pytest.mark.parametrize(
    ("status", "text", "advice"),
    [
        (403, "Private repository storage limit reached: quota exceeded", ""),
        (404, "Namespace not found", ""),
        (409, "You already created this model repo", "--exist-ok"),
    ],
)
def test_the_hubs_own_words(server: HubServer, send, status, text, advice):
    """Guards against a message of ours that hides the Hub's, and against sending large files again after an error."""
    server.faults.append(Fault("POST", "/commit/", status, text))
    with pytest.raises(HubError, match=f"{text}.*{advice}.*Nothing was published"):
        send(TARGET)
    server.faults.clear()
    send(AGAIN)
    assert server.sent("PUT", "/lfs/") == 1
