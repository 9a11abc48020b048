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
import time
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
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 10**9  # later requests are answered
    after: int = 0  # earlier requests are answered
    acts: bool = False  # the request is carried out, and only its answer is lost
    corrupts: bool = False  # it is answered with different content, or with the hashes of different content

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
    pulls: list[str] = field(default_factory=list)

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit."""
        if revision in self.history:
            return self.history[revision][-1]
        return self.tags.get(revision) or (revision if revision in self.commits else None)


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
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        """The value of HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"

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
        files = repository.commits[repository.resolve(revision) or ""]
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


class Handler(BaseHTTPRequestHandler):
    """The endpoints: a row of ``ROUTES`` each."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together; apart, each answer waits 40 ms for the client's acknowledgement

    def log_message(self, *_: Any) -> None:
        """Requests are kept, not printed."""

    def _serve(self) -> None:
        split = urlsplit(self.path)
        path, self.query = unquote(split.path), parse_qs(split.query)
        self.server.requests.append((self.command, path))
        self.fault = next((fault for fault in self.server.faults if fault.hits(self.command, path)), None)
        if self.fault and not self.fault.acts and not self.fault.corrupts:
            return self._fail(self.fault)
        size = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(size)
        for method, pattern, name, writes in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                with self.server.lock:
                    return self._answer(name, writes, match)
        return self._json({"error": f"no such endpoint: {self.command} {path}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _serve

    def _answer(self, name: str, writes: bool, match: re.Match[str]) -> None:
        arguments: dict[str, Any] = match.groupdict()
        if "repo_id" in arguments:
            arguments["repository"] = self.server.repositories.get(arguments.pop("repo_id"))
            if arguments["repository"] is None:
                return self._error(404, "RepoNotFound", "Repository not found")
        if writes and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._error(401, "Unauthorized", "Invalid credentials in Authorization header")
        getattr(self, name)(**arguments)
        return None

    def _fail(self, fault: Fault) -> None:
        self.close_connection = True
        size = int(self.headers.get("Content-Length", 0))
        if not fault.status:
            self.rfile.read(min(100, size))  # in the middle of the body
            return
        self.rfile.read(size)
        headers = {"X-Error-Message": fault.text, "Connection": "close"}
        self._json({"error": fault.text}, fault.status, fault.headers | headers)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _bytes(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        if self.fault and self.fault.acts:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, code: str, message: str) -> None:
        self._json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    # The endpoints

    def _on_whoami(self) -> None:
        orgs = [{"name": name} for name in self.server.organisations]
        token = {"accessToken": {"role": self.server.role}}
        self._json({"name": self.server.user, "type": "user", "orgs": orgs, "auth": token})

    def _on_create(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self.server.user}/{asked['name']}"
        url = f"{self.server.url}/{repo_id}"
        if repo_id in self.server.repositories:
            return self._json({"error": "You already created this model repo", "url": url}, 409)
        self.server.create(repo_id, private=asked.get("visibility") == "private")
        return self._json({"url": url, "name": repo_id, "id": repo_id})

    def _on_validate_yaml(self) -> None:
        self._json({"errors": [], "warnings": []})

    def _on_preupload(self, repository: Repository, revision: str) -> None:
        here = repository.commits[repository.resolve(revision) or ""]
        files = []
        for asked in json.loads(self.body)["files"]:
            name = asked["path"]
            mode = "lfs" if _is_lfs(asked["size"], name) else "regular"
            oid = _oid(here[name], name) if name in here else None
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def _on_lfs_batch(self, repository: Repository) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            one = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.blobs:
                one["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"}}
            objects.append(one)
        self._json({"transfer": "basic", "objects": objects})

    def _on_lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._json({"error": "hash mismatch"}, 400)
        self.server.blobs[oid] = self.body
        return self._json({})

    def _on_commit(self, repository: Repository, revision: str) -> None:
        rows = [json.loads(line) for line in self.body.splitlines()]
        head = repository.history[revision][-1]
        if rows[0]["value"].get("parentCommit", head) != head:
            return self._json({"error": "A commit has happened since. Please refresh and try again."}, 412)
        files = dict(repository.commits[head])
        for row in rows[1:]:
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
        answer = {"commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "pullRequestUrl": pull}
        return self._json({"success": True, "hookOutput": "", **answer})

    def _on_refs(self, repository: Repository) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1]}
            for name, commits in repository.history.items()
            if not name.startswith("refs/")
        ]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repository.tags.items()]
        self._json({"branches": branches, "converts": [], "tags": tags})

    def _on_commits(self, repository: Repository, revision: str) -> None:
        row = {"authors": [{"user": self.server.user}], "date": DATE, "title": "a commit", "message": ""}
        self._json([{"id": oid, **row} for oid in reversed(repository.history[revision])])

    def _on_branch(self, repository: Repository, name: str) -> None:
        if name in repository.history:
            return self._json({"error": "Reference already exists"}, 409)
        repository.history[name] = [repository.resolve(json.loads(self.body)["startingPoint"]) or ""]
        return self._json({})

    def _on_tag(self, repository: Repository, revision: str) -> None:
        name = json.loads(self.body)["tag"]
        if name in repository.tags:
            return self._json({"error": "Tag reference exists already"}, 409)
        repository.tags[name] = repository.resolve(revision) or ""
        return self._json({})

    def _on_delete_tag(self, repository: Repository, name: str) -> None:
        if repository.tags.pop(name, None) is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {name}")
        return self._json({})

    def _on_info(self, repository: Repository, revision: str | None) -> None:
        if (oid := repository.resolve(revision or "main")) is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [{"rfilename": name} for name in repository.commits[oid]]
        facts = {"id": repository.repo_id, "sha": oid, "private": repository.private}
        return self._json({**facts, "siblings": siblings, "tags": []})

    def _on_tree(self, repository: Repository, revision: str, path: str | None) -> None:
        if (oid := repository.resolve(revision)) is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        rows = []
        prefix = f"{path.strip('/')}/" if path else ""
        for name, content in repository.commits[oid].items():
            if not name.startswith(prefix):
                continue
            told = content + b"!" if self.fault and self.fault.corrupts else content
            row: dict[str, Any] = {"type": "file", "path": name, "oid": _oid(told, name), "size": len(content)}
            if name in self.server.unhashed:
                row["oid"] = None
            elif _is_lfs(len(content), name):
                row["lfs"] = {"oid": row["oid"], "size": len(content), "pointerSize": 130}
            rows.append(row)
        if prefix and not rows:
            return self._error(404, "EntryNotFound", f"{path} does not exist")
        return self._json(rows)

    def _on_resolve(self, repository: Repository, revision: str, name: str) -> None:
        oid = repository.resolve(revision)
        content = repository.commits[oid].get(name) if oid else None
        if oid is None or content is None:
            code = "EntryNotFound" if oid else "RevisionNotFound"
            return self._error(404, code, f"{name} does not exist at {revision}")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_oid(content, name)}"', "Accept-Ranges": "bytes"}
        if _is_lfs(len(content), name):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        if self.fault and self.fault.corrupts:
            content = bytes([content[0] ^ 1]) + content[1:]
        return self._bytes(content, 200, headers)


REPO = r"(?P<repo_id>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+(?:/pr/\d+)?)"
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


def main() -> None:
    """Serve until interrupted, to try publishing by hand."""
    server = HubServer()
    lines = (f"export HF_ENDPOINT={server.url}", "export HF_HUB_DISABLE_XET=1", f"export HF_TOKEN={server.token}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
