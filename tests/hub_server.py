"""A Hub on this machine's loopback: all that the real client needs to create, upload, tag and download a model.

It keeps commits as git does (a revision is a commit, a commit is all its files), takes large files by LFS, and checks
as the real one does: the token, the parent of a commit, the hash of an upload. Faults are injected by request.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Fault:
    """A mishap of the requests with this method whose path holds this pattern."""

    method: str
    path: str
    status: int = 0  # of the answer; 0 cuts the connection
    text: str = "injected"
    retry_after: str = ""  # seconds, as the header of that name says them
    times: int = 10**9  # later requests are answered
    after: int = 0  # earlier requests are answered
    acts: bool = False  # the request is carried out, and only its answer is lost
    corrupts: bool = False  # it is answered with different content, or with the hashes of different content
    answer: bytes | None = None  # this is the answer, with status 200, and nothing is done
    trickles: str = ""  # "head" or "body" of the answer comes a byte at a time, and never ends
    headers: dict[str, str] = field(default_factory=dict)  # more of the answer

    def hits(self, method: str, path: str) -> bool:
        """Whether this request is one of them; counts it."""
        if method != self.method or not re.search(self.path, path) or self.times == 0:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Repository:
    repo_id: str
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    history: dict[str, list[str]] = field(default_factory=dict)  # branch → commits, oldest first
    tags: dict[str, str] = field(default_factory=dict)
    pulls: list[str] = field(default_factory=list)  # the branch of each pull request

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit."""
        commit = self.history.get(revision, [self.tags.get(revision, revision)])[-1]
        return commit if commit in self.commits else None


class HubServer(ThreadingHTTPServer):
    """The Hub, with one user who is a member of one organisation."""

    daemon_threads = True
    token = "hf_" + "secret" * 6

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.user, self.organisations, self.role = "tester", ["org"], "write"
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.unhashed: set[str] = set()  # names of files whose hashes no listing tells
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.is_down = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        """The value of HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def shutdown(self) -> None:
        """Stop, also the answers that never end."""
        self.is_down.set()
        super().shutdown()

    def create(self, repo_id: str, private: bool = False) -> Repository:
        """A repository as the Hub creates it, with a first commit."""
        repository = self.repositories[repo_id] = Repository(repo_id, private)
        self.commit(repository, "main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return repository

    def commit(self, repository: Repository, branch: str, files: dict[str, bytes]) -> str:
        """Put files on a branch."""
        listing = [(name, hashlib.sha256(content).hexdigest()) for name, content in sorted(files.items())]
        oid = hashlib.sha1(json.dumps([branch, len(repository.commits), listing]).encode()).hexdigest()
        repository.commits[oid] = files
        repository.history.setdefault(branch, []).append(oid)
        return oid

    def files(self, repo_id: str, revision: str) -> dict[str, bytes]:
        """The files of a revision, without the Hub's own."""
        repository = self.repositories[repo_id]
        files = repository.commits[repository.resolve(revision)]
        return {name: content for name, content in files.items() if name != ".gitattributes"}

    def sent(self, method: str, path: str) -> int:
        """How many requests like this came."""
        return sum(one == method and bool(re.search(path, other)) for one, other in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is expected; everything else is a mistake of the server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _is_lfs(size: int, name: str) -> bool:
    return name.endswith(".safetensors") or size >= 10**7


def _oid(content: bytes, name: str) -> str:
    """The hash by which LFS or git names a file."""
    if _is_lfs(len(content), name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Refused(Exception):
    """An answer that is an error: its status, message, and the code by which the client knows it."""


def refuse(condition: bool, status: int, message: str, code: str = "") -> None:
    if condition:
        raise Refused(status, message, code)


class Handler(BaseHTTPRequestHandler):
    """The endpoints: a row of ``ROUTES`` each. A handler returns JSON, or bytes with headers."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together; apart, each answer waits 40 ms for the client's acknowledgement

    def log_message(self, *_: Any) -> None:
        """Requests are kept, not printed."""

    def _serve(self) -> None:
        split = urlsplit(self.path)
        path, self.query = unquote(split.path), parse_qs(split.query)
        self.server.requests.append((self.command, path))
        fault = next((fault for fault in self.server.faults if fault.hits(self.command, path)), None)
        self.corrupts = bool(fault and fault.corrupts)
        is_cut = fault is not None and not (fault.status or self.corrupts or fault.trickles or fault.answer is not None)
        self.close_connection = is_cut
        size = int(self.headers.get("Content-Length", 0))
        if fault and is_cut and not fault.acts:
            self.rfile.read(min(100, size))  # in the middle of the body
            return
        self.body = self.rfile.read(size)
        headers: dict[str, str] = dict(fault.headers) if fault else {}
        if fault and fault.trickles:
            self._trickle(fault.trickles)
            return
        try:
            if fault and fault.status:
                headers |= {"Retry-After": fault.retry_after} if fault.retry_after else {}
                raise Refused(fault.status, fault.text, "")
            with self.server.lock:
                told = fault.answer if fault else None
                answer, status = ((told, {}) if told is not None else self._answer(path)), 200
        except Refused as refused:
            status, message, code = refused.args
            answer = {"error": message}
            headers |= {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        if is_cut:
            return
        content, more = answer if isinstance(answer, tuple) else (json.dumps(answer).encode(), {})
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers, **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _trickle(self, part: str) -> None:
        start = "HTTP/1.1 200 OK\r\n" + ("X-Long: " if part == "head" else "Content-Length: 9999999\r\n\r\n")
        self.wfile.write(start.encode())
        while not self.server.is_down.wait(0.05):  # not time.sleep, which tests replace
            self.wfile.write(b"1")
            self.wfile.flush()

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _serve

    def _answer(self, path: str) -> Any:
        for method, pattern, name, writes in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                is_known = self.headers.get("Authorization") == f"Bearer {self.server.token}"
                refuse(writes and not is_known, 401, "Invalid credentials in Authorization header", "Unauthorized")
                arguments: dict[str, Any] = match.groupdict()
                if "repo_id" in arguments:
                    arguments["repository"] = self.server.repositories.get(arguments.pop("repo_id"))
                    refuse(arguments["repository"] is None, 404, "Repository not found", "RepoNotFound")
                return getattr(self, name)(**arguments)
        raise Refused(404, f"no such endpoint: {self.command} {path}", "")

    # The endpoints

    def _on_whoami(self) -> Any:
        orgs = [{"name": name} for name in self.server.organisations]
        token = {"accessToken": {"role": self.server.role}}
        return {"name": self.server.user, "type": "user", "orgs": orgs, "auth": token}

    def _on_create(self) -> Any:
        asked = json.loads(self.body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        refuse(repo_id in self.server.repositories, 409, "You already created this model repo")
        self.server.create(repo_id, private=asked.get("visibility") == "private")
        return {"url": f"{self.server.url}/{repo_id}"}

    def _on_validate_yaml(self) -> Any:
        return {"errors": [], "warnings": []}

    def _on_preupload(self, repository: Repository, revision: str) -> Any:
        files = []
        for asked in json.loads(self.body)["files"]:
            mode = "lfs" if _is_lfs(asked["size"], asked["path"]) else "regular"
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None})
        return {"files": files}

    def _on_lfs_batch(self, repository: Repository) -> Any:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            one = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.blobs:
                one["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"}}
            objects.append(one)
        return {"transfer": "basic", "objects": objects}

    def _on_lfs_put(self, oid: str) -> Any:
        refuse(hashlib.sha256(self.body).hexdigest() != oid, 400, "hash mismatch")
        self.server.blobs[oid] = self.body
        return {}

    def _on_commit(self, repository: Repository, revision: str) -> Any:
        header, *rows = [json.loads(line) for line in self.body.splitlines()]
        head = repository.history[revision][-1]
        stale = header["value"].get("parentCommit", head) != head
        refuse(stale, 412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[head])
        for row in rows:
            path = row["value"]["path"]
            if row["key"] == "file":
                files[path] = base64.b64decode(row["value"]["content"])
            elif row["key"] == "lfsFile":
                files[path] = self.server.blobs[row["value"]["oid"]]
            else:
                del files[path]
        pull, url = None, f"{self.server.url}/{repository.repo_id}"
        if self.query.get("create_pr"):
            repository.pulls.append(revision)
            pull = f"{url}/discussions/{len(repository.pulls)}"
            revision = f"refs/pr/{len(repository.pulls)}"
        oid = self.server.commit(repository, revision, files)
        return {"commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "pullRequestUrl": pull}

    def _on_refs(self, repository: Repository) -> Any:
        heads = {name: commits[-1] for name, commits in repository.history.items() if not name.startswith("refs/")}
        kinds = {"branches": ("heads", heads), "converts": ("", {}), "tags": ("tags", repository.tags)}
        return {
            kind: [{"name": name, "ref": f"refs/{place}/{name}", "targetCommit": oid} for name, oid in refs.items()]
            for kind, (place, refs) in kinds.items()
        }

    def _on_commits(self, repository: Repository, revision: str) -> Any:
        row = {"authors": [{"user": self.server.user}], "date": DATE, "title": "a commit", "message": ""}
        return [{"id": oid, **row} for oid in reversed(repository.history[revision])]

    def _on_branch(self, repository: Repository, name: str) -> Any:
        refuse(name in repository.history, 409, "Reference already exists")
        repository.history[name] = [self._commit(repository, json.loads(self.body)["startingPoint"])]
        return {}

    def _on_tag(self, repository: Repository, revision: str) -> Any:
        name = json.loads(self.body)["tag"]
        refuse(name in repository.tags, 409, "Tag reference exists already")
        repository.tags[name] = self._commit(repository, revision)
        return {}

    def _on_delete_tag(self, repository: Repository, name: str) -> Any:
        refuse(repository.tags.pop(name, None) is None, 404, f"Invalid rev id: {name}", "RevisionNotFound")
        return {}

    def _on_info(self, repository: Repository, revision: str | None) -> Any:
        oid = self._commit(repository, revision or "main")
        return {
            "id": repository.repo_id,
            "sha": oid,
            "siblings": [{"rfilename": name} for name in repository.commits[oid]],
        }

    def _on_tree(self, repository: Repository, revision: str, path: str | None) -> Any:
        files = repository.commits[self._commit(repository, revision)]
        refuse(path is not None, 404, f"{path} does not exist", "EntryNotFound")  # the client asks for chat templates
        rows = []
        for name, content in files.items():
            told = content + b"!" if self.corrupts else content
            row: dict[str, Any] = {"type": "file", "path": name, "oid": _oid(told, name), "size": len(content)}
            if name in self.server.unhashed:
                row["oid"] = None
            elif _is_lfs(len(content), name):
                row["lfs"] = {"oid": row["oid"], "size": len(content), "pointerSize": 130}
            rows.append(row)
        return rows

    def _on_resolve(self, repository: Repository, revision: str, name: str) -> Any:
        oid = self._commit(repository, revision)
        content = repository.commits[oid].get(name, b"")
        refuse(name not in repository.commits[oid], 404, f"{name} does not exist at {revision}", "EntryNotFound")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_oid(content, name)}"', "Accept-Ranges": "bytes"}
        if _is_lfs(len(content), name):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        return bytes([content[0] ^ 1]) + content[1:] if self.corrupts else content, headers

    def _commit(self, repository: Repository, revision: str) -> str:
        oid = repository.resolve(revision)
        refuse(oid is None, 404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return str(oid)


REPO = r"(?P<repo_id>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"
# Method, path, handler, and whether it needs the token.
ROUTES = (
    ("GET", "/api/whoami-v2", "_on_whoami", True),
    ("POST", "/api/repos/create", "_on_create", True),
    ("POST", "/api/validate-yaml", "_on_validate_yaml", False),
    ("POST", rf"/api/models/{REPO}/preupload/{REVISION}", "_on_preupload", True),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "_on_lfs_batch", True),
    ("PUT", "/lfs/(?P<oid>.+)", "_on_lfs_put", False),
    ("POST", rf"/api/models/{REPO}/commit/{REVISION}", "_on_commit", True),
    ("GET", rf"/api/models/{REPO}/refs", "_on_refs", False),
    ("GET", rf"/api/models/{REPO}/commits/{REVISION}", "_on_commits", False),
    ("POST", rf"/api/models/{REPO}/branch/(?P<name>.+)", "_on_branch", True),
    ("POST", rf"/api/models/{REPO}/tag/{REVISION}", "_on_tag", True),
    ("DELETE", rf"/api/models/{REPO}/tag/(?P<name>.+)", "_on_delete_tag", True),
    ("GET", rf"/api/models/{REPO}(?:/revision/{REVISION})?", "_on_info", False),
    ("GET", rf"/api/models/{REPO}/tree/{REVISION}(?P<path>/.*)?", "_on_tree", False),
    ("GET HEAD", rf"/{REPO}/resolve/{REVISION}/(?P<name>.+)", "_on_resolve", False),
)
