"""A model Hub on loopback, for the real huggingface_hub client: listing, downloads, uploads, and faults on demand.

    with HubServer() as hub:
        hub.add("me/walkers", {"runs/a.pth": content})
        hub.faults.append(Fault("/resolve/main/runs/a.pth", cut_after=1000))

Endpoints: those which huggingface_hub 2.4 calls with LFS, not Xet, as the store (HF_HUB_DISABLE_XET): hf_hub_download,
snapshot_download, model_info, list_repo_tree, get_paths_info, create_repo, upload_folder, upload_file, create_commit,
whoami. Files of 1 KiB and more, and weights of any size, are LFS files; their content lies on a second port, which
stands for the Hub's CDN. Writing wants the token `TOKEN`; so does reading a private or gated repository.

The fixture `hub` gives a running one, at which the client in the test's own process points; `hub.environment(home)` is
for a child process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_of_the_tests"
LFS_SUFFIXES = (".pth", ".pkl", ".safetensors", ".ckpt", ".beton")
LFS_FROM_BYTES = 1024


class StoredFile(NamedTuple):
    """One file of one commit."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        """Git's name of the blob; an LFS file's blob is its pointer."""
        stored = self.content
        if self.is_lfs:
            stored = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(stored)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid


@dataclass
class Repo:
    """A repository: its commits, and where its branches stand."""

    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    private: bool = False
    gated: bool = False

    def commit(self, files: Mapping[str, StoredFile], message: str, branch: str = "main") -> str:
        """The files of a new commit on top of the branch; gives its hash."""
        tree = {**self.commits.get(self.refs.get(branch, ""), {}), **files}
        return self.replace(tree, message, branch)

    def replace(self, tree: dict[str, StoredFile], message: str, branch: str = "main") -> str:
        names = "".join(f"{path} {tree[path].git_oid}\n" for path in sorted(tree))
        sha = hashlib.sha1(f"{len(self.commits)} {names}".encode()).hexdigest()
        self.commits[sha] = tree
        self.refs[branch] = sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None

    @property
    def files(self) -> dict[str, StoredFile]:
        """Those of main."""
        return self.commits[self.refs["main"]]


@dataclass
class Fault:
    """What goes wrong with requests whose path holds `match`, the first `times` of them after `skip` good ones."""

    match: str
    times: int = 1_000_000
    methods: tuple[str, ...] = ("GET", "HEAD", "POST", "PUT")
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Of the answer with `status` or `redirect_to`."""
    stall_s: float = 0.0
    """Silence before anything is answered."""
    cut_after: int | None = None
    """The connection breaks after so many bytes of the body (of this answer)."""
    stall_after: int | None = None
    """Silence after so many bytes of the body."""
    pause_s: float = 0.0
    """Silence between pieces of the body of `piece` bytes."""
    piece: int = 65_536
    redirect_to: str | None = None
    """Where the answer sends the client; the path itself makes a loop."""
    replace: bytes | None = None
    """The body in place of the right one."""
    no_range: bool = False
    """Ignore that only a part was asked for."""


class Request(NamedTuple):
    method: str
    path: str
    range: str | None
    authorization: str | None


class HubServer:
    """`endpoint` is what HF_ENDPOINT should be, `requests` what has been asked, `repos` what is stored."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.web: dict[str, bytes] = {}
        """Plain files, served under `endpoint`/web/NAME, with ranges and without the Hub's headers."""
        self.web_has_etags = True
        self.uploads: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) for _ in range(2)]
        for server in self._servers:
            server.daemon_threads = True
            server.block_on_close = False
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        return type("Handler", (_Handler,), {"hub": self})

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, repo_id: str, files: Mapping[str, bytes], branch: str = "main", **attributes: bool) -> str:
        """Commit files to a repository, which is made if it is not there; gives the commit's hash."""
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo())
            for name, value in attributes.items():
                setattr(repo, name, value)
            return repo.commit({path: stored(path, content) for path, content in files.items()}, "added", branch)

    def count(self, match: str, method: str | None = None) -> int:
        """Requests whose path holds `match`."""
        return sum(match in request.path and method in (None, request.method) for request in list(self.requests))

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Environment variables with which a process talks to this Hub and to no other."""
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_TOKEN_PATH": str(home / "token"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **more,
        }  # fmt: skip


def stored(path: str, content: bytes) -> StoredFile:
    return StoredFile(content, len(content) >= LFS_FROM_BYTES or path.endswith(LFS_SUFFIXES))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub without repositories; caches in tmp_path/home, time-outs of a second, no token."""
    with HubServer() as server:
        use_in_this_process(server, tmp_path / "home", monkeypatch)
        yield server


def use_in_this_process(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the huggingface_hub of this process, which may be imported already, at `hub` and at caches in `home`."""
    for name, value in hub.environment(home).items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    from huggingface_hub import constants

    point_client_at(hub.endpoint, monkeypatch)
    for name, value in {
        "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(home / "token"), "HF_HUB_ETAG_TIMEOUT": 1, "HF_HUB_DOWNLOAD_TIMEOUT": 1,
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value, raising=False)


def point_client_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The huggingface_hub of this process asks `endpoint` from now on."""
    from huggingface_hub import constants, file_download

    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    for place in (constants, file_download):  # clients before 1.0 have a copy of it
        monkeypatch.setattr(place, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


class _Answered(Exception):
    """The request has been dealt with."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, *arguments: object) -> None:
        pass

    # --- answering

    def _fault(self) -> Fault | None:
        with self.hub.lock:
            self.hub.requests.append(
                Request(self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"))
            )
            for fault in self.hub.faults:
                if fault.match in unquote(self.path) and self.command in fault.methods:
                    if fault.skip > 0:
                        fault.skip -= 1
                    elif fault.times > 0:
                        fault.times -= 1
                        return fault
        return None

    def _send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/octet-stream", **(headers or {})}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._write(body)
        raise _Answered

    def _json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def _write(self, body: bytes) -> None:
        fault = self.fault
        if fault is None:
            self.wfile.write(body)
            return
        stop = fault.cut_after if fault.cut_after is not None else fault.stall_after
        sent = body if stop is None else body[:stop]
        step = fault.piece if fault.pause_s else max(1, len(sent))
        for start in range(0, len(sent), step):
            self.wfile.write(sent[start : start + step])
            self.wfile.flush()
            if fault.pause_s:
                self.hub.closing.wait(fault.pause_s)
        if fault.stall_after is not None:
            self.hub.closing.wait(30)
        if stop is not None:
            self.close_connection = True

    def _content(self, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A file, or the range of it that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers = {"Accept-Ranges": "bytes", **(headers or {})}
        if self.fault is not None and self.fault.replace is not None:
            content = self.fault.replace
        is_other = self.headers.get("If-Range") not in (None, headers.get("ETag"))
        if asked is None or is_other or (self.fault is not None and self.fault.no_range):
            self._send(200, content, headers)
        assert asked is not None
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + bool(asked[2]), len(content))
        if start >= len(content):
            self._send(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
        part = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        self._send(206, content[start:stop], {**headers, **part})

    def _handle(self) -> None:
        self.fault = self._fault()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.fault
        try:
            if fault is not None:
                if fault.stall_s:
                    self.hub.closing.wait(fault.stall_s)
                if fault.redirect_to is not None:
                    self._send(302, b"", {"Location": fault.redirect_to, **fault.headers})
                if fault.status is not None:
                    self._send(fault.status, b'{"error": "as the test asked"}', fault.headers)
            with self.hub.lock:
                answer = self._route(body)
            answer()
        except _Answered:
            pass
        except OSError:  # the client went away
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    # --- what there is

    def _route(self, body: bytes) -> Any:
        """A function that answers; answering may take long and needs no lock."""
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        for pattern, method in (
            (r"/web/(?P<name>.+)", self._web),
            (r"/cdn/(?P<oid>[0-9a-f]{64})", self._cdn),
            (r"/upload/(?P<oid>[0-9a-f]{64})", self._upload),
            (r"/verify", self._verify),
            (r"/api/whoami-v2", self._whoami),
            (r"/api/validate-yaml", self._validate),
            (r"/api/repos/create", self._create),
            (r"/api/models/(?P<repo_id>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", self._preupload),
            (r"/api/models/(?P<repo_id>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", self._commit),
            (r"/api/models/(?P<repo_id>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", self._paths_info),
            (r"/api/models/(?P<repo_id>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", self._tree),
            (r"/api/models/(?P<repo_id>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", self._info),
            (r"/(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self._resolve),
        ):
            if (match := re.fullmatch(pattern, path)) is not None:
                return method(body, query, **{key: value for key, value in match.groupdict().items()})
        return lambda: self._send(404, b"no such page")

    @property
    def _is_allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _need_token(self) -> None:
        if not self._is_allowed:
            self._json({"error": "Invalid username or password."}, 401)

    def _repo(self, repo_id: str) -> Repo:
        """Raises, having answered, where there is none for this client. As the real one, it does not tell a stranger
        whether a repository is private or absent."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self._is_allowed):
            if self._is_allowed:
                self._refuse(404, "RepoNotFound", "Repository not found")
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
        assert repo is not None
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        assert sha is not None
        return sha

    def _web(self, body: bytes, query: Any, name: str) -> Any:
        content = self.hub.web.get(name)
        if content is None:
            return lambda: self._send(404, b"no such page")
        mark = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'} if self.hub.web_has_etags else {}
        return lambda: self._content(content, mark)

    def _info(self, body: bytes, query: Any, repo_id: str, revision: str | None) -> Any:
        repo = self._repo(repo_id)
        sha = self._commit_of(repo, revision or "main")
        siblings = []
        for path, file in sorted(repo.commits[sha].items()):
            entry: dict[str, Any] = {"rfilename": path}
            if "blobs" in query:
                entry |= {"size": len(file.content), "blobId": file.git_oid}
                if file.is_lfs:
                    entry["lfs"] = {"sha256": file.sha256, "size": len(file.content), "pointerSize": 134}
            siblings.append(entry)
        about = {"id": repo_id, "modelId": repo_id, "sha": sha, "private": repo.private, "gated": repo.gated}
        return lambda: self._json({**about, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    @staticmethod
    def _entry(path: str, file: StoredFile) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.content), "oid": file.git_oid}
        if file.is_lfs:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
        return entry

    def _tree(self, body: bytes, query: Any, repo_id: str, revision: str, folder: str | None, **_: Any) -> Any:
        repo = self._repo(repo_id)
        files = repo.commits[self._commit_of(repo, revision)]
        prefix = f"{folder}/" if folder else ""
        below = {path: file for path, file in sorted(files.items()) if path.startswith(prefix)}
        entries = [self._entry(path, file) for path, file in below.items() if "/" not in path[len(prefix) :]]
        if query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            entries = [self._entry(path, file) for path, file in below.items()]
        return lambda: self._json(entries)

    def _paths_info(self, body: bytes, query: Any, repo_id: str, revision: str) -> Any:
        repo = self._repo(repo_id)
        files = repo.commits[self._commit_of(repo, revision)]
        asked = parse_qs(body.decode()).get("paths", [])
        entries = [self._entry(path, files[path]) for path in asked if path in files]
        return lambda: self._json(entries)

    def _resolve(self, body: bytes, query: Any, repo_id: str, revision: str, file: str) -> Any:
        repo = self._repo(repo_id)
        if repo.gated and not self._is_allowed:
            self._refuse(401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        sha = self._commit_of(repo, revision)
        found = repo.commits[sha].get(file)
        if found is None:
            message = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return lambda: self._send(404, b"Entry not found", {**message, "X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{found.etag}"'}
        if not found.is_lfs:
            return lambda: self._content(found.content, headers)
        linked = {"X-Linked-Size": str(len(found.content)), "X-Linked-ETag": f'"{found.etag}"'}
        where = {"Location": f"{self.hub.cdn}/cdn/{found.sha256}?name={file}"}
        return lambda: self._send(302, b"", {**headers, **linked, **where})

    def _cdn(self, body: bytes, query: Any, oid: str) -> Any:
        for repo in self.hub.repos.values():
            for files in repo.commits.values():
                for file in files.values():
                    if file.is_lfs and file.sha256 == oid:
                        return lambda: self._content(file.content, {"ETag": f'"{oid}"'})
        return lambda: self._send(404, b"no such object")

    # --- uploads

    def _whoami(self, body: bytes, query: Any) -> Any:
        self._need_token()
        return lambda: self._json({"type": "user", "name": "me", "fullname": "Me", "orgs": [], "auth": {}})

    def _validate(self, body: bytes, query: Any) -> Any:
        return lambda: self._json({"errors": [], "warnings": []})

    def _create(self, body: bytes, query: Any) -> Any:
        self._need_token()
        asked = json.loads(body)
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.hub.endpoint}/{repo_id}"}
        if repo_id in self.hub.repos:
            return lambda: self._json({"error": "You already created this model repo", **url}, 409)
        repo = self.hub.repos[repo_id] = Repo(private=asked.get("private") or asked.get("visibility") == "private")
        repo.commit({".gitattributes": stored(".gitattributes", b"*.pth filter=lfs\n")}, "initial commit")
        return lambda: self._json(url)

    def _preupload(self, body: bytes, query: Any, repo_id: str, revision: str) -> Any:
        self._need_token()
        repo = self._repo(repo_id)
        there = repo.commits[self._commit_of(repo, revision)]
        answers = []
        for file in json.loads(body)["files"]:
            is_lfs = file["size"] >= LFS_FROM_BYTES or file["path"].endswith(LFS_SUFFIXES)
            old = there.get(file["path"])
            oid = {"oid": old.etag} if old is not None else {}
            mode = "lfs" if is_lfs else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return lambda: self._json({"files": answers})

    def _batch(self, body: bytes, query: Any, repo_id: str) -> Any:
        self._need_token()
        self._repo(repo_id)
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.uploads:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.cdn}/upload/{wanted['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.endpoint}/verify", "header": {}},
                }
            objects.append(entry)
        media = {"Content-Type": "application/vnd.git-lfs+json"}
        return lambda: self._json({"transfer": "basic", "objects": objects}, headers=media)

    def _upload(self, body: bytes, query: Any, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            return lambda: self._send(400, b"the content is not that of the name")
        self.hub.uploads[oid] = body
        return lambda: self._send(200)

    def _verify(self, body: bytes, query: Any) -> Any:
        wanted = json.loads(body)
        whole = len(self.hub.uploads.get(wanted["oid"], b"")) == wanted["size"]
        return lambda: self._json({} if whole else {"error": "not there"}, 200 if whole else 404)

    def _commit(self, body: bytes, query: Any, repo_id: str, revision: str) -> Any:
        self._need_token()
        repo = self._repo(repo_id)
        tree = dict(repo.commits[self._commit_of(repo, revision)])
        message = ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                tree[value["path"]] = StoredFile(base64.b64decode(value["content"]), is_lfs=False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.uploads:
                    self._json({"error": f"no such LFS object {value['oid']}"}, 400)
                tree[value["path"]] = StoredFile(self.hub.uploads[value["oid"]], is_lfs=True)
            elif item["key"] == "deletedFile":
                del tree[value["path"]]
            elif item["key"] == "deletedFolder":
                tree = {path: file for path, file in tree.items() if not path.startswith(value["path"])}
        sha = repo.replace(tree, message, revision)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{sha}"
        return lambda: self._json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})
