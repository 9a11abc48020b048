"""Upload: whatever the Hub does, a revision is what it was or what was built, and the message says what to do."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from e2rank_st.publishing.hub import HubError, Patience
from e2rank_st.publishing.upload import Target, plan, publish
from tests.hub_server import Fault, HubServer

CARD = "---\nlicense: apache-2.0\n---\n# A model\n"
TARGET = Target("org/e2rank", "1.0.0")
AGAIN = replace(TARGET, exist_ok=True)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two revisions that share their weights."""
    for revision in ("main", "embedding"):
        folder = tmp_path / "build" / revision
        (folder / "1_Pooling").mkdir(parents=True)
        (folder / "README.md").write_text(f"{CARD}{revision}\n")
        (folder / "1_Pooling" / "config.json").write_text("{}\n")
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 2000)
    (tmp_path / "build" / "main" / "modeling_e2rank.py").write_text("# code\n")
    return {revision: tmp_path / "build" / revision for revision in ("main", "embedding")}


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_published(server: HubServer, folders: dict[str, Path], revision: str) -> bool:
    return server.files("org/e2rank", revision) == content(folders[revision])


def test_publish_unchanged_and_a_new_card(server: HubServer, api: HfApi, folders, caplog):
    """Guards against files lost on the way, commits without a change, and a second upload of the same weights."""
    with caplog.at_level(logging.INFO, "e2rank_st"):
        assert [change.head for change in plan(folders, TARGET, api)] == ["", ""]
        assert not server.repositories, "a plan changes nothing"
        first = publish(folders, replace(TARGET, private=True), api)
    repository = server.repositories["org/e2rank"]
    assert repository.private
    assert all(is_published(server, folders, revision) for revision in folders)
    assert repository.tags == {"v1.0.0": first[0].commit, "v1.0.0-embedding": first[1].commit}
    assert server.sent("PUT", "/lfs/") == 1
    assert len(repository.commits) == 3
    publish(folders, AGAIN, api)
    assert (len(repository.commits), server.sent("POST", "/commit/")) == (3, 2)

    card = folders["main"] / "README.md"
    card.write_text(card.read_text() + "More.\n")
    before = dict(repository.commits)
    with pytest.raises(HubError, match=r"main of org/e2rank has other content in README.md\. .*--overwrite.*Nothing"):
        publish(folders, AGAIN, api)
    assert repository.commits == before
    changes = publish(folders, replace(AGAIN, overwrite=True), api)
    assert [[file.name for file in change.added] for change in changes] == [["README.md"], []]
    assert len(repository.commits) == 4
    assert server.sent("PUT", "/lfs/") == 1
    assert repository.tags["v1.0.0"] == changes[0].commit, "the tag moved along"
    assert server.token not in caplog.text


def test_files_that_are_gone_are_deleted(server: HubServer, api: HfApi, folders):
    """Guards against old code or shards that live on beside the new ones."""
    publish(folders, TARGET, api)
    (folders["main"] / "modeling_e2rank.py").rename(folders["main"] / "other.py")
    (change, _) = publish(folders, replace(AGAIN, overwrite=True), api)
    assert change.deleted == ["modeling_e2rank.py"]
    assert is_published(server, folders, "main")


def test_pull_requests_leave_the_branches_alone(server: HubServer, api: HfApi, folders):
    """Guards against a proposal that is a commit."""
    publish(folders, TARGET, api)
    (folders["main"] / "README.md").write_text(CARD + "Better.\n")
    before = server.files("org/e2rank", "main")
    change, other = publish(folders, replace(AGAIN, create_pr=True), api)
    assert change.pull_request.endswith("/discussions/1")
    assert not other.pull_request
    assert server.files("org/e2rank", "main") == before


def test_proposing_to_somebody_else(server: HubServer, api: HfApi, folders):
    """Guards against a pull request that only members could open, although it is meant for others."""
    publish(folders, TARGET, api)
    server.organisations.clear()
    (folders["main"] / "README.md").write_text(CARD + "Better.\n")
    change, _ = publish(folders, replace(AGAIN, create_pr=True), api)
    assert change.pull_request


def test_a_version_that_is_none():
    """Guards against a tag that the Hub refuses after everything was uploaded."""
    with pytest.raises(ValueError, match=r"Got the version 'a b'; .*1\.2\.3"):
        replace(TARGET, version="a b")


@pytest.mark.parametrize(
    ("prepare", "target", "message"),
    [
        (lambda server: server.create("org/e2rank"), TARGET, r"name org/e2rank is taken\. .*--exist-ok"),
        (lambda server: server.organisations.clear(), TARGET, r"tester, who is no member of org\. Create or join"),
        (lambda server: setattr(server, "role", "read"), TARGET, r"may only read\. Make one with write rights to org"),
        (lambda server: setattr(server, "token", "hf_other"), TARGET, r"HTTP 401.*does not accept the token.*hf auth"),
        (
            lambda server: server.create("org/e2rank").tags.update({"v2.0": "0" * 40}),
            AGAIN,
            r"newer v2\.0\. .*--overwr",
        ),
        (lambda server: server.create("org/e2rank").tags.update({"v1.0.0": "0" * 40}), AGAIN, r"tag v1\.0\.0 is at an"),
    ],
)
def test_refused_before_anything_is_sent(server: HubServer, api: HfApi, folders, prepare, target, message):
    """Guards against gigabytes that are uploaded before it turns out that they may not be."""
    prepare(server)
    with pytest.raises(HubError, match=message) as caught:
        publish(folders, target, api)
    assert "Nothing was published" in str(caught.value)
    assert not [request for request in server.requests if request[0] in {"POST", "PUT", "DELETE"}]


def test_no_token_and_no_network(server: HubServer, api: HfApi, folders, monkeypatch, waits):
    """Guards against a traceback of the client where a word on the token or the network helps."""
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"There is no token\. Log in with: hf auth login, or set HF_TOKEN"):
        publish(folders, TARGET, api)
    monkeypatch.setenv("HF_TOKEN", server.token)
    with pytest.raises(HubError, match=r"was not reached.*Check network, proxy and HF_ENDPOINT"):
        publish(folders, TARGET, HfApi(endpoint="http://127.0.0.1:9"))
    assert waits == [1, 2, 4]


# Every endpoint that publishing uses: its method, its path, and what is there when it fails for good.
ENDPOINTS = {
    "whoami": ("GET", "whoami"),
    "refs": ("GET", "/refs$"),
    "create": ("POST", "repos/create"),
    "tree": ("GET", "/tree/"),
    "yaml": ("POST", "validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "objects/batch"),
    "upload": ("PUT", "/lfs/"),
    "verify": ("POST", "lfs-verify"),
    "commit": ("POST", "/commit/"),
    "history": ("GET", "/commits/"),
    "branch": ("POST", "/branch/"),
    "head": ("HEAD", "/resolve/"),
    "download": ("GET", "/resolve/"),
    "tag": ("POST", "/tag/"),
}
STATUSES = (401, 403, 404, 409, 413, 429, 500, 0)
PASSING = (429, 500, 0)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_lasting_faults(server: HubServer, api: HfApi, folders, endpoint):
    """Guards against a half-published revision, a false success, and a failure without advice; at every endpoint."""
    method, path = ENDPOINTS[endpoint]
    for status in STATUSES:
        server.repositories.clear()
        server.blobs.clear()
        server.faults[:] = [Fault(method, path, status, headers={"Retry-After": "3"} if status == 429 else {})]
        case = f"{endpoint}: {status}"
        try:
            publish(folders, TARGET, api, Patience(tries=2))
        except HubError as error:
            message = str(error)
        else:  # an upload that arrived but was not verified is not sent again; the download shows that it is whole
            assert endpoint == "verify" and status in PASSING, f"{case} was taken for a success"
            assert all(is_published(server, folders, revision) for revision in folders), case
            continue
        assert server.token not in message, case
        assert any(word in message for word in ("un this again", "https://", "--repo-id", "--exist-ok")), (
            case,
            message,
        )
        assert any(word in message for word in ("Nothing was", "still empty", "so far", "not confirmed")), (
            case,
            message,
        )
        if "org/e2rank" in server.repositories:
            there = [name for name in folders if is_on_the_hub(server, name)]
            assert all(name in message for name in there), (case, message)
            for revision in set(folders) & set(server.repositories["org/e2rank"].history):
                there = server.files("org/e2rank", revision)
                assert there in ({}, content(folders[revision])), case
        server.faults.clear()
        publish(folders, AGAIN, api)  # the same command goes on from there
        assert all(is_published(server, folders, revision) for revision in folders), case


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("status", PASSING)
def test_passing_faults(server: HubServer, api: HfApi, folders, endpoint, status, waits):
    """Guards against giving up at once; the Hub's own waiting time is kept, plus the second that the client adds."""
    method, path = ENDPOINTS[endpoint]
    server.faults.append(Fault(method, path, status, headers={"Retry-After": "7"} if status == 429 else {}, times=1))
    publish(folders, TARGET, api)
    assert all(is_published(server, folders, revision) for revision in folders)
    assert waits in ([[7], [8]] if status == 429 else [[1]]) or (endpoint == "head" and not waits), waits


def is_on_the_hub(server: HubServer, revision: str) -> bool:
    """Whether a commit was made, whatever it holds."""
    return len(server.repositories["org/e2rank"].history.get(revision, ())) > 1


@pytest.mark.parametrize("endpoint", ["create", "commit", "branch", "tag"])
def test_lost_answers(server: HubServer, api: HfApi, folders, endpoint):
    """Guards against doing twice what was done: the Hub acted, and its answer never came."""
    method, path = ENDPOINTS[endpoint]
    server.faults.append(Fault(method, path, times=1, acts=True))
    publish(folders, TARGET, api)
    assert all(is_published(server, folders, revision) for revision in folders)
    assert len(server.repositories["org/e2rank"].commits) == 3


def test_moving_a_tag(server: HubServer, api: HfApi, folders):
    """Guards against a tag that is lost or stays behind, whatever happens when it is deleted to be set anew."""
    publish(folders, TARGET, api)
    repository = server.repositories["org/e2rank"]
    faults = [Fault("DELETE", "/tag/", status) for status in STATUSES]
    faults += [Fault("DELETE", "/tag/", status, times=1) for status in PASSING]
    faults += [Fault("DELETE", "/tag/", times=1, acts=True)]
    for number, fault in enumerate(faults):
        (folders["main"] / "README.md").write_text(f"{CARD}{number}\n")
        server.faults[:] = [fault]
        if fault.times > 1:
            with pytest.raises(HubError, match=r"moving the tag v1\.0\.0: .*so far: main"):
                publish(folders, replace(AGAIN, overwrite=True), api, Patience(tries=2))
            server.faults.clear()
        publish(folders, replace(AGAIN, overwrite=True), api)
        assert repository.tags["v1.0.0"] == repository.resolve("main"), fault


def test_a_lost_answer_and_then_no_hub(server: HubServer, api: HfApi, folders):
    """Guards against "nothing was published" where the commit was made and nobody can be asked any more."""
    server.faults[:] = [Fault("POST", "/commit/", acts=True), Fault("GET", "/refs$", after=2)]
    with pytest.raises(HubError, match=r"for main may be on the Hub already, but .*--exist-ok"):
        publish(folders, TARGET, api, Patience(tries=1))
    assert is_published(server, folders, "main")
    server.faults.clear()
    publish(folders, AGAIN, api)
    assert len(server.repositories["org/e2rank"].commits) == 3


def test_an_upload_goes_on_where_it_was_cut(server: HubServer, api: HfApi, folders):
    """Guards against sending large files again that the Hub already has."""
    server.faults.append(Fault("POST", "/commit/", 403))
    with pytest.raises(HubError, match="may not write"):
        publish(folders, TARGET, api)
    server.faults.clear()
    publish(folders, AGAIN, api)
    assert server.sent("PUT", "/lfs/") == 1


def test_a_wrong_download_is_no_success(server: HubServer, api: HfApi, folders):
    """Guards against trusting the Hub's word: what comes back is compared, and is not tagged if it differs."""
    server.faults.append(Fault("GET", "/resolve/.*/model.safetensors", corrupts=True))
    with pytest.raises(HubError, match=r"model\.safetensors came back with another content.*must not be trusted"):
        publish(folders, TARGET, api)
    for again in range(2):  # its listing says that all is there
        with pytest.raises(HubError, match="must not be trusted"):
            publish(folders, replace(AGAIN, overwrite=bool(again)), api)
    assert not server.repositories["org/e2rank"].tags
    server.faults.clear()
    publish(folders, AGAIN, api)
    downloads = server.sent("GET", "/resolve/")
    publish(folders, AGAIN, api)
    assert server.sent("GET", "/resolve/") == downloads, "what was tagged was confirmed"


def test_somebody_else_commits_meanwhile(server: HubServer, api: HfApi, folders, monkeypatch):
    """Guards against overwriting what came between the look and the commit."""
    publish(folders, TARGET, api)
    (folders["main"] / "README.md").write_text(CARD + "Ours.\n")
    repository = server.repositories["org/e2rank"]

    real = api.preupload_lfs_files

    def interrupted(*arguments, **options):
        server.commit(repository, "main", {"README.md": b"theirs"})
        real(*arguments, **options)

    monkeypatch.setattr(api, "preupload_lfs_files", interrupted)
    with pytest.raises(HubError):
        publish(folders, replace(AGAIN, overwrite=True), api)
    assert server.files("org/e2rank", "main") == {"README.md": b"theirs"}


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (403, "Private repository storage limit reached: quota exceeded", "quota of org is used up"),
        (413, "Payload too large", "--shard-size"),
        (404, "Namespace not found", "no user or organisation org"),
        (409, "You already created this model repo", "--exist-ok"),
        (403, "You don't have the rights to create a model under this namespace", "write rights to org"),
    ],
)
def test_what_the_hub_says_is_explained(server: HubServer, api: HfApi, folders, status, text, message):
    """Guards against one text for all that can go wrong."""
    server.faults.append(Fault("POST", "repos/create", status, text))
    with pytest.raises(HubError, match=message) as caught:
        publish(folders, TARGET, api)
    assert text in str(caught.value)
