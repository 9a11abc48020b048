"""A Hub on this machine's loopback: what the real client needs to create, upload, tag and download a model.

It keeps commits as git does (a revision is a commit, a commit is all its files), takes large files by LFS, and checks
what the real one checks: the token, the parent of a commit, the hash of an upload. Faults are injected by request.
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
    """What to do to some requests instead of answering them.

    Attributes:
        method: Theirs.
        path: Pattern that is searched in their path.
        status: The status to answer with; 0 to cut the connection.
        text: The error in the answer.
        headers: Of the answer.
        times: How many requests; the later ones are answered.
        after: How many requests are answered first.
        acts: Whether the request is carried out, and only its answer is lost.
        corrupts: Whether it is answered, with another content.
    """

    method: str
    path: str
    status: int = 0
    text: str = "injected"
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 10**9
    after: int = 0
    acts: bool = False
    corrupts: bool = False

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
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def create(self, repo_id: str, private: bool = False) -> Repository:
        """A repository as the Hub creates it, with a first commit."""
        repository = self.repositories[repo_id] = Repository(private)
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
        """What a revision holds, without the Hub's own file."""
        repository = self.repositories[repo_id]
        files = repository.commits[repository.resolve(revision) or ""]
        return {name: content for name, content in files.items() if name != ".gitattributes"}

    def sent(self, method: str, path: str) -> int:
        """How many requests like this came."""
        return sum(one == method and bool(re.search(path, other)) for one, other in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; everything else is a mistake of the server's."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _is_lfs(content: bytes, name: str) -> bool:
    return name.endswith(".safetensors") or len(content) >= 10**7


def _git_hash(content: bytes) -> str:
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
        fault = next((fault for fault in self.server.faults if fault.hits(self.command, path)), None)
        if fault and not fault.acts and not fault.corrupts:
            return self._fail(fault)
        size = int(self.headers.get("Content-Length", 0))
        self.body = self._chunked() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(size)
        self.fault = fault
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                with self.server.lock:
                    return getattr(self, name)(*match.groups())
        return self._json({"error": f"no such endpoint: {self.command} {path}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _serve

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _fail(self, fault: Fault) -> None:
        self.close_connection = True
        if not fault.status:
            self.rfile.read(min(100, int(self.headers.get("Content-Length", 0))))  # in the middle of what is sent
            return
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {"X-Error-Message": fault.text, "Connection": "close"}
        self._json({"error": fault.text}, fault.status, fault.headers | headers)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _bytes(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        if self.__dict__.get("fault") and self.fault.acts:
            self.fault = None
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

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.server.token}":
            return True
        self._error(401, "Unauthorized", "Invalid credentials in Authorization header")
        return False

    def _repository(self, repo_id: str) -> Repository | None:
        repository = self.server.repositories.get(repo_id)
        if repository is None:
            self._error(404, "RepoNotFound", "Repository not found")
        return repository

    # The endpoints

    def _on_whoami(self) -> None:
        if self._may_write():
            orgs = [{"name": name} for name in self.server.organisations]
            token = {"accessToken": {"role": self.server.role}}
            self._json({"name": self.server.user, "type": "user", "orgs": orgs, "auth": token})

    def _on_create(self) -> None:
        if not self._may_write():
            return
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self.server.user}/{asked['name']}"
        url = f"{self.server.url}/{repo_id}"
        if repo_id in self.server.repositories:
            self._json({"error": "You already created this model repo", "url": url}, 409)
        else:
            self.server.create(repo_id, private=asked.get("visibility") == "private")
            self._json({"url": url, "name": repo_id, "id": repo_id})

    def _on_validate_yaml(self) -> None:
        self._json({"errors": [], "warnings": []})

    def _on_preupload(self, repo_id: str, revision: str) -> None:
        repository = self._repository(repo_id)
        if repository is None or not self._may_write():
            return
        here = repository.commits[repository.resolve(revision) or ""]
        files = []
        for asked in json.loads(self.body)["files"]:
            is_lfs = asked["path"].endswith(".safetensors") or asked["size"] >= 10**7
            content = here.get(asked["path"])
            oid = None
            if content is not None:
                oid = hashlib.sha256(content).hexdigest() if is_lfs else _git_hash(content)
            files.append(
                {"path": asked["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False, "oid": oid}
            )
        self._json({"files": files})

    def _on_lfs_batch(self, repo_id: str) -> None:
        if self._repository(repo_id) is None or not self._may_write():
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            one = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.blobs:
                upload = {"href": f"{self.server.url}/lfs/{asked['oid']}"}
                verify = {"href": f"{self.server.url}/lfs-verify"}
                one["actions"] = {"upload": upload, "verify": verify}
            objects.append(one)
        self._json({"transfer": "basic", "objects": objects})

    def _on_lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._json({"error": "hash mismatch"}, 400)
        self.server.blobs[oid] = self.body
        return self._json({})

    def _on_lfs_verify(self) -> None:
        asked = json.loads(self.body)
        there = len(self.server.blobs.get(asked["oid"], b"")) == asked["size"]
        self._json({}, 200 if there else 404)

    def _on_commit(self, repo_id: str, revision: str) -> None:
        repository = self._repository(repo_id)
        if repository is None or not self._may_write():
            return
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
                if row["value"]["oid"] not in self.server.blobs:
                    return self._json({"error": f"LFS object of {path} was never uploaded"}, 400)
                files[path] = self.server.blobs[row["value"]["oid"]]
            else:
                del files[path]
        pull = None
        if self.query.get("create_pr"):
            repository.pulls.append(revision)
            pull = f"{self.server.url}/{repo_id}/discussions/{len(repository.pulls)}"
            revision = f"refs/pr/{len(repository.pulls)}"
        oid = self.server.commit(repository, revision, files)
        url = f"{self.server.url}/{repo_id}/commit/{oid}"
        return self._json(
            {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": "", "pullRequestUrl": pull}
        )

    def _on_refs(self, repo_id: str) -> None:
        repository = self._repository(repo_id)
        if repository is not None:
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1]}
                for name, commits in repository.history.items()
                if not name.startswith("refs/")
            ]
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repository.tags.items()]
            self._json({"branches": branches, "converts": [], "tags": tags})

    def _on_commits(self, repo_id: str, revision: str) -> None:
        repository = self._repository(repo_id)
        if repository is not None:
            row = {"authors": [{"user": self.server.user}], "date": DATE, "title": "a commit", "message": ""}
            self._json([{"id": oid, **row} for oid in reversed(repository.history[revision])])

    def _on_branch(self, repo_id: str, name: str) -> None:
        repository = self._repository(repo_id)
        if repository is not None and self._may_write():
            if name in repository.history:
                return self._json({"error": "Reference already exists"}, 409)
            start = repository.resolve(json.loads(self.body or b"{}").get("startingPoint", "main"))
            repository.history[name] = [start or ""]
            self._json({})
        return None

    def _on_tag(self, repo_id: str, revision: str) -> None:
        repository = self._repository(repo_id)
        if repository is not None and self._may_write():
            name = json.loads(self.body)["tag"]
            if name in repository.tags:
                return self._json({"error": "Tag reference exists already"}, 409)
            repository.tags[name] = repository.resolve(revision) or ""
            self._json({})
        return None

    def _on_delete_tag(self, repo_id: str, name: str) -> None:
        repository = self._repository(repo_id)
        if repository is not None and self._may_write():
            if repository.tags.pop(name, None) is None:
                return self._error(404, "RevisionNotFound", f"Invalid rev id: {name}")
            self._json({})
        return None

    def _on_info(self, repo_id: str, revision: str | None = None) -> None:
        repository = self._repository(repo_id)
        if repository is None:
            return
        oid = repository.resolve(revision or "main")
        if oid is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            siblings = [{"rfilename": name} for name in repository.commits[oid]]
            self._json({"id": repo_id, "sha": oid, "private": repository.private, "siblings": siblings, "tags": []})

    def _on_tree(self, repo_id: str, revision: str, path: str | None = None) -> None:
        repository = self._repository(repo_id)
        if repository is None:
            return
        oid = repository.resolve(revision)
        if oid is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        rows = []
        prefix = f"{path.strip('/')}/" if path else ""
        for name, content in repository.commits[oid].items():
            if not name.startswith(prefix):
                continue
            row: dict[str, Any] = {"type": "file", "path": name, "oid": _git_hash(content), "size": len(content)}
            if _is_lfs(content, name):
                sha256 = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
            rows.append(row)
        if prefix and not rows:
            return self._error(404, "EntryNotFound", f"{path} does not exist")
        return self._json(rows)

    def _on_resolve(self, repo_id: str, revision: str, name: str) -> None:
        repository = self._repository(repo_id)
        if repository is None:
            return
        oid = repository.resolve(revision)
        content = repository.commits[oid].get(name) if oid else None
        if oid is None or content is None:
            code = "EntryNotFound" if oid else "RevisionNotFound"
            return self._error(404, code, f"{name} does not exist at {revision}")
        etag = hashlib.sha256(content).hexdigest() if _is_lfs(content, name) else _git_hash(content)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if _is_lfs(content, name):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if self.fault and self.fault.corrupts:
            content = bytes([content[0] ^ 1]) + content[1:]
        return self._bytes(content, 200, headers)


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    ("GET", "/api/whoami-v2", "_on_whoami"),
    ("POST", "/api/repos/create", "_on_create"),
    ("POST", "/api/validate-yaml", "_on_validate_yaml"),
    ("POST", rf"/api/models/{REPO}/preupload/(.+)", "_on_preupload"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "_on_lfs_batch"),
    ("PUT", "/lfs/(.+)", "_on_lfs_put"),
    ("POST", "/lfs-verify", "_on_lfs_verify"),
    ("POST", rf"/api/models/{REPO}/commit/(.+)", "_on_commit"),
    ("GET", rf"/api/models/{REPO}/refs", "_on_refs"),
    ("GET", rf"/api/models/{REPO}/commits/(.+)", "_on_commits"),
    ("POST", rf"/api/models/{REPO}/branch/(.+)", "_on_branch"),
    ("POST", rf"/api/models/{REPO}/tag/(.+)", "_on_tag"),
    ("DELETE", rf"/api/models/{REPO}/tag/(.+)", "_on_delete_tag"),
    ("GET", rf"/api/models/{REPO}", "_on_info"),
    ("GET", rf"/api/models/{REPO}/revision/(.+)", "_on_info"),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)(/.*)?", "_on_tree"),
    ("HEAD", rf"/{REPO}/resolve/([^/]+)/(.+)", "_on_resolve"),
    ("GET", rf"/{REPO}/resolve/([^/]+)/(.+)", "_on_resolve"),
)


def main() -> None:
    """Serve until interrupted: to try publishing by hand, as the README says."""
    server = HubServer()
    lines = (f"export HF_ENDPOINT={server.url}", "export HF_HUB_DISABLE_XET=1", f"export HF_TOKEN={server.token}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
