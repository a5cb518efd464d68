"""A small Hub on loopback: what the real client calls to push and to load, and the ways in which that can fail.

Written by hand after the client's own calls (huggingface_hub 2.4, without Xet): what it proves is our side of the talk.
Repositories are kept in memory as git has them: commits with whole trees, branches and tags that name commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ruamel.yaml import YAML

LARGE = (".safetensors", ".parquet")


@dataclass
class Repo:
    """`commits`: the tree of each, {path: (content, whether it is large)}."""

    private: bool
    commits: dict[str, dict[str, tuple[bytes, bool]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    summaries: list[str] = field(default_factory=list)

    def commit(self, branch: str, summary: str, tree: dict[str, tuple[bytes, bool]]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{summary}".encode()).hexdigest()
        self.commits[oid] = tree
        self.branches[branch] = oid
        self.summaries.append(summary)
        return oid

    def resolve(self, revision: str) -> str | None:
        found = self.branches.get(revision) or self.tags.get(revision)
        return found or (revision if revision in self.commits else None)


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer:
    """`users`: token to name. `calls`: method and path of all so far."""

    def __init__(self) -> None:
        self.users = {"hf_mine": "me", "hf_theirs": "them"}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}  # large files, by SHA-256
        self.calls: list[str] = []
        self.fail: list[tuple[str, int | str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail_once(self, call: str, how: int | str, **headers: str) -> None:
        """The next call that matches gets a status, or "cut": no answer; "cut after": done, but no answer."""
        self.fail.append((call, how, headers))

    def failure(self, call: str) -> tuple[int | str, dict[str, str]] | None:
        with self.lock:
            for each in self.fail:
                if re.search(each[0], call):
                    self.fail.remove(each)
                    return each[1], each[2]
        return None

    def model(self, name: str) -> Repo:
        return self.repos["models", name]

    def sent(self, what: str) -> list[str]:
        return [call for call in self.calls if re.search(what, call)]

    def create(self, kind: str, name: str, private: bool) -> Repo:
        repo = self.repos[kind, name] = Repo(private)
        repo.commit("main", "initial commit", {".gitattributes": (b"*.safetensors filter=lfs\n", False)})
        return repo


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


Answer = tuple[int, Any, dict[str, str]]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        address = urlsplit(self.path)
        path, self.query = unquote(address.path), parse_qs(address.query)
        call = f"{self.command} {path}"
        self.body = self._read()
        with self.hub.lock:
            self.hub.calls.append(call)
        failure = self.hub.failure(call)
        if failure is not None and failure[0] == "cut":
            self.close_connection = True
            return
        if failure is not None and isinstance(failure[0], int):
            self._answer(failure[0], {"error": "told to fail"}, failure[1])
            return
        try:
            status, content, headers = self._route(call)
        except _Refused as refused:
            named = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            status, content = refused.status, {"error": refused.message or refused.code}
            headers = {name: value for name, value in named.items() if value}
        if failure is not None:  # "cut after"
            self.close_connection = True
            return
        self._answer(status, content, headers)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: Any, headers: dict[str, str]) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _route(self, call: str) -> Answer:
        for pattern, method in ROUTES:
            found = re.fullmatch(pattern, call)
            if found:
                return method(self, **found.groupdict())
        raise _Refused(404, message=f"no such call: {call}")

    # Who asks, and for what.

    def _user(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.users:
            raise _Refused(401, message="Invalid username or password.")
        return self.hub.users[token]

    def _repo(self, kind: str, name: str, write: bool = False) -> Repo:
        user = self._user()
        repo = self.hub.repos.get((kind or "models", name))
        mine = name.split("/")[0] == user
        if repo is None or (repo.private and not mine):
            raise _Refused(404, "RepoNotFound", "Repository not found")
        if write and not mine:
            raise _Refused(403, message="You have read access but not the required permissions for this operation")
        return repo

    def _tree(self, repo: Repo, revision: str) -> tuple[str, dict[str, tuple[bytes, bool]]]:
        oid = repo.resolve(revision)
        if oid is None:
            raise _Refused(404, "RevisionNotFound", "Invalid rev id")
        return oid, repo.commits[oid]

    # The calls.

    def whoami(self) -> Answer:
        return 200, {"type": "user", "name": self._user(), "orgs": []}, {}

    def create(self) -> Answer:
        asked, user = json.loads(self.body), self._user()
        if (asked["organization"] or user) != user:
            raise _Refused(403, message="You don't have the rights to create a model under this namespace")
        kind, name = f"{asked.get('type') or 'model'}s", f"{user}/{asked['name']}"
        if (kind, name) in self.hub.repos:
            return 409, {"error": "You already created this repo", "url": f"{self.hub.url}/{name}"}, {}
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.create(kind, name, bool(private))
        return 200, {"url": f"{self.hub.url}/{name}"}, {}

    def validate(self) -> Answer:
        asked = json.loads(self.body)
        found = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
        wrong = problems(YAML(typ="safe").load(found[1]) if found else {})
        return (400 if wrong else 200), {"errors": [{"message": one} for one in wrong], "warnings": []}, {}

    def info(self, kind: str, name: str, revision: str | None = None) -> Answer:
        repo = self._repo(kind, name)
        oid, tree = self._tree(repo, revision or "main")
        siblings = [{"rfilename": path} for path in tree]
        return 200, {"id": name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []}, {}

    def refs(self, kind: str, name: str) -> Answer:
        repo = self._repo(kind, name)

        def listed(refs: dict[str, str], folder: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in refs.items()]

        return 200, {"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []}, {}

    def tree(self, kind: str, name: str, revision: str) -> Answer:
        _, tree = self._tree(self._repo(kind, name), revision)
        rows = []
        for path, (content, large) in tree.items():
            row = {"type": "file", "path": path, "size": len(content), "oid": git_blob(content)}
            if large:
                sha = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 100}
            rows.append(row)
        return 200, rows, {}

    def preupload(self, kind: str, name: str, revision: str) -> Answer:
        _, tree = self._tree(self._repo(kind, name, write=True), revision)
        told = []
        for file in json.loads(self.body)["files"]:
            large, held = file["path"].endswith(LARGE), tree.get(file["path"])
            hashed = hashlib.sha256(held[0]).hexdigest() if held and held[1] else git_blob(held[0]) if held else None
            mode = "lfs" if large else "regular"
            told.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": hashed})
        return 200, {"files": told}, {}

    def batch(self, kind: str | None, name: str) -> Answer:
        self._repo(kind or "models", name, write=True)
        objects = []
        for one in json.loads(self.body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/storage/{one['oid']}"},
                "verify": {"href": f"{self.hub.url}/verify"},
            }
            objects.append(one if one["oid"] in self.hub.stored else {**one, "actions": actions})
        return 200, {"transfer": "basic", "objects": objects}, {}

    def store(self, oid: str) -> Answer:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, message="not what was announced")
        self.hub.stored[oid] = self.body
        return 200, {}, {"ETag": oid}

    def verify(self) -> Answer:
        return (200 if json.loads(self.body)["oid"] in self.hub.stored else 404), {}, {}

    def commit(self, kind: str, name: str, revision: str) -> Answer:
        repo = self._repo(kind, name, write=True)
        _, before = self._tree(repo, revision)
        tree, summary = dict(before), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                summary = value["summary"]
            elif entry["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"]), False
            elif entry["key"] == "lfsFile":
                tree[value["path"]] = self.hub.stored[value["oid"]], True
            else:
                del tree[value["path"]]
        oid = repo.commit(revision, summary, tree)
        url = f"{self.hub.url}/{name}/commit/{oid}"
        return 200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""}, {}

    def tag(self, kind: str, name: str, revision: str) -> Answer:
        repo, asked = self._repo(kind, name, write=True), json.loads(self.body)
        if asked["tag"] in repo.tags:
            raise _Refused(409, message="Tag reference exists already")
        repo.tags[asked["tag"]] = self._tree(repo, revision)[0]
        return 200, {}, {}

    def branch(self, kind: str, name: str, revision: str) -> Answer:
        repo = self._repo(kind, name, write=True)
        if revision in repo.branches:
            raise _Refused(409, message="Reference already exists")
        repo.branches[revision] = repo.branches["main"]
        return 200, {}, {}

    def download(self, kind: str | None, name: str, revision: str, path: str) -> Answer:
        oid, tree = self._tree(self._repo(kind or "models", name), revision)
        if path not in tree:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        content, large = tree[path]
        etag = hashlib.sha256(content).hexdigest() if large else git_blob(content)
        return 200, content, {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}


def problems(metadata: dict[str, Any]) -> list[str]:
    """What the Hub refuses in a card's metadata (its documentation, "Model cards" and "Dataset cards")."""
    wrong = []
    named = re.compile(r"[\w.-]+(/[\w.-]+)?")
    for key in ("base_model", "datasets"):
        values = metadata.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            if not named.fullmatch(value):
                wrong.append(f'"{key}" with value "{value}" is not valid')
    for model in metadata.get("model-index", []):
        for result in model["results"]:
            if not result["task"]["type"] or not result["dataset"]["type"] or not result["dataset"]["name"]:
                wrong.append('"model-index" lacks a task or data set')
            wrong += ['"model-index" lacks a value' for metric in result["metrics"] if "value" not in metric]
    for config in metadata.get("configs", []):
        wrong += [
            f'split "{file["split"]}" is not valid'
            for file in config["data_files"]
            if not re.fullmatch(r"\w+(\.\w+)*", file["split"])
        ]
    return wrong


_API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
_NAME = r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable[..., Answer]]] = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET {_API}", _Handler.info),
    (rf"GET {_API}/revision/(?P<revision>[^/]+)", _Handler.info),
    (rf"GET {_API}/refs", _Handler.refs),
    (rf"GET {_API}/tree/(?P<revision>[^/]+)", _Handler.tree),
    (rf"POST {_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (rf"POST {_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (rf"POST {_API}/tag/(?P<revision>[^/]+)", _Handler.tag),
    (rf"POST {_API}/branch/(?P<revision>[^/]+)", _Handler.branch),
    (rf"POST {_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /storage/(?P<oid>\w+)", _Handler.store),
    (r"POST /verify", _Handler.verify),
    (rf"(?:GET|HEAD) {_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.download),
]
