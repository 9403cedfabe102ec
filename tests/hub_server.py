"""A Hub on loopback: enough of its HTTP API to create, push, read and update model repositories.

Like the real one it keeps weight files in a large-file store, to which they go before the commit, and it takes a
commit as a whole or not at all.
"""

import base64
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from .forked import python

TOKEN = "hf_local"
ROOT = Path(__file__).parents[1]
REPO = r"(?P<repo>[^/]+/[^/]+)"


@dataclasses.dataclass
class Commit:
    """What the server was asked to commit."""

    repo: str
    revision: str
    create_pr: bool
    message: str
    added: list[str]
    deleted: list[str]
    parent: str | None


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class HubServer:
    """Runs while a `with` block does.

    Attributes:
        repos: Repository to branch to path to content.
        private: Repository to whether it was asked to be private.
        commits: Commits that were made, in order.
        large: The large-file store: SHA-256 to content.
        failing_commits: Repository to how many commits will still be answered with status 500.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[Commit] = []
        self.large: dict[str, bytes] = {}
        self.failing_commits: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo: str, files: dict[str, bytes] | None = None, private: bool = False) -> None:
        """Makes a repository with what the Hub puts into a new one, and more."""
        self.repos[repo] = {"main": {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}}
        self.private[repo] = private

    def sha(self, repo: str, revision: str = "main") -> str:
        """Identity of a branch's content."""
        files = self.repos[repo][revision]
        return hashlib.sha1(repr(sorted((path, _sha1(body)) for path, body in files.items())).encode()).hexdigest()

    def files(self, repo: str, revision: str) -> dict[str, bytes]:
        """Files at a branch or at the commit that a branch is at."""
        if repo not in self.repos:
            raise Refused(404, "RepoNotFound")
        for branch, files in self.repos[repo].items():
            if revision in (branch, self.sha(repo, branch)):
                return files
        raise Refused(404, "RevisionNotFound")

    def commit(self, repo: str, revision: str, create_pr: bool, lines: list[dict[str, Any]]) -> dict[str, Any]:
        """Applies a commit, unless it shall fail."""
        files = self.files(repo, revision)
        if self.failing_commits.get(repo):
            self.failing_commits[repo] -= 1
            raise Refused(500, "Internal")
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, self.sha(repo, revision)):
            raise Refused(412, "ParentChanged")
        values = {kind: [x["value"] for x in lines if x["key"] == kind] for kind in ("file", "lfsFile", "deletedFile")}
        added = {value["path"]: base64.b64decode(value["content"]) for value in values["file"]}
        added |= {value["path"]: self.large[value["oid"]] for value in values["lfsFile"]}
        deleted = [value["path"] for value in values["deletedFile"]]
        target = f"refs/pr/{1 + sum(commit.create_pr for commit in self.commits)}" if create_pr else revision
        kept = {path: body for path, body in files.items() if path not in deleted}
        self.repos[repo][target] = kept | added
        parent = header.get("parentCommit")
        self.commits.append(Commit(repo, revision, create_pr, header["summary"], sorted(added), deleted, parent))
        url = f"{self.url}/{repo}"
        sha = self.sha(repo, target)
        pull = {"pullRequestUrl": f"{url}/discussions/{target.rpartition('/')[2]}"} if create_pr else {}
        return {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}", "hookOutput": "", **pull}


def run_client(module: str, action: str, home: Path, endpoint: str, token: str | None) -> dict[str, Any]:
    """Runs `python -m module action` in a process that knows only this Hub; returns the JSON that it prints last."""
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    if token is not None:
        environment["HF_TOKEN"] = token
    command = [python(), "-m", module, action]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def metadata(content: str) -> Any:
    """The YAML block of a model card."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    return yaml.safe_load(match[1]) if match else {}


def metadata_errors(content: str) -> list[str]:
    """What the Hub would say against the metadata of a model card."""
    data = metadata(content)
    if not isinstance(data, dict):
        return ["metadata is no object"]
    errors = []
    for name in ("language", "tags"):
        values = data.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            errors.append(f"{name} must be a list of strings")
        elif name == "language" and not all(re.fullmatch("[a-z]{2,3}", value) for value in values):
            errors.append(f"language {values} holds something else than ISO 639 codes")
    if data.get("base_model_relation", "finetune") not in ("finetune", "quantized", "adapter", "merge"):
        errors.append("base_model_relation is not known")
    if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", data.get("base_model", "a/b")):
        errors.append("base_model is no repository")
    for model in data.get("model-index", []):
        for result in model["results"]:
            complete = result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
            if not complete or not all(metric["type"] and "value" in metric for metric in result["metrics"]):
                errors.append("a result of model-index is not complete")
    return errors


def _sha1(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            path = unquote(url.path)
            try:
                for method, pattern, respond in ROUTES:
                    match = re.fullmatch(pattern, path)
                    if match is not None and self.command in method:
                        return respond(self, body, parse_qs(url.query), **match.groupdict())
                raise Refused(404, "EntryNotFound")
            except Refused as refused:
                headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.code}
                return self.send({"error": refused.code}, refused.status, headers)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def require_token(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refused(401, "Unauthorized")

        def create(self, body: bytes, query: Any) -> None:
            self.require_token()
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            exists = repo in hub.repos
            if not exists:
                hub.add(repo, private=wanted.get("visibility") == "private" or wanted.get("private", False))
            self.send({"url": f"{hub.url}/{repo}", "id": repo, "name": repo}, 409 if exists else 200)

        def branch(self, body: bytes, query: Any, repo: str, revision: str) -> None:
            self.require_token()
            exists = revision in hub.repos[repo]
            hub.repos[repo].setdefault(revision, dict(hub.repos[repo]["main"]))
            self.send({}, 409 if exists else 200)

        def validate(self, body: bytes, query: Any) -> None:
            errors = [{"message": message} for message in metadata_errors(json.loads(body)["content"])]
            self.send({"errors": errors, "warnings": []}, 400 if errors else 200)

        def info(self, body: bytes, query: Any, repo: str, revision: str | None) -> None:
            names = hub.files(repo, revision or "main")
            sha = next(hub.sha(repo, branch) for branch, files in hub.repos[repo].items() if files is names)
            card = metadata(names.get("README.md", b"").decode("utf-8"))
            siblings = [{"rfilename": name} for name in names]
            self.send(
                {
                    "_id": "0",
                    "id": repo,
                    "sha": sha,
                    "private": hub.private[repo],
                    "siblings": siblings,
                    "cardData": card,
                }
            )

        def tree(self, body: bytes, query: Any, repo: str, revision: str, folder: str) -> None:
            files = hub.files(repo, revision)
            found = [
                {"type": "file", "path": path, "size": len(content), "oid": _sha1(content)}
                for path, content in files.items()
                if path.startswith(folder)
            ]
            if folder and not found:
                raise Refused(404, "EntryNotFound")
            self.send(found)

        def preupload(self, body: bytes, query: Any, repo: str, revision: str) -> None:
            self.require_token()
            files = hub.files(repo, revision)
            modes = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if entry["path"].endswith((".safetensors", ".png")) else "regular",
                    "shouldIgnore": False,
                    "oid": _sha1(files[entry["path"]]) if entry["path"] in files else None,
                }
                for entry in json.loads(body)["files"]
            ]
            self.send({"files": modes})

        def batch(self, body: bytes, query: Any, repo: str) -> None:
            self.require_token()
            objects = [
                {"oid": entry["oid"], "size": entry["size"]}
                | (
                    {}
                    if entry["oid"] in hub.large
                    else {"actions": {"upload": {"href": f"{hub.url}/large/{entry['oid']}"}}}
                )
                for entry in json.loads(body)["objects"]
            ]
            self.send({"transfer": "basic", "objects": objects})

        def store(self, body: bytes, query: Any, oid: str) -> None:
            assert hashlib.sha256(body).hexdigest() == oid
            hub.large[oid] = body
            self.send({})

        def commit(self, body: bytes, query: Any, repo: str, revision: str) -> None:
            self.require_token()
            lines = [json.loads(line) for line in body.splitlines()]
            self.send(hub.commit(repo, revision, query.get("create_pr") == ["1"], lines))

        def resolve(self, body: bytes, query: Any, repo: str, revision: str, path: str) -> None:
            files = hub.files(repo, revision)
            if path not in files:
                raise Refused(404, "EntryNotFound")
            sha = next(hub.sha(repo, branch) for branch, found in hub.repos[repo].items() if found is files)
            self.send(files[path], headers={"ETag": f'"{_sha1(files[path])}"', "X-Repo-Commit": sha})

    ROUTES = (
        ("POST", "/api/repos/create", Handler.create),
        ("POST", "/api/validate-yaml", Handler.validate),
        ("POST", f"/api/models/{REPO}/branch/(?P<revision>.+)", Handler.branch),
        ("POST", f"/api/models/{REPO}/preupload/(?P<revision>.+)", Handler.preupload),
        ("POST", f"/api/models/{REPO}/commit/(?P<revision>.+)", Handler.commit),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.batch),
        ("PUT", "/large/(?P<oid>[0-9a-f]{64})", Handler.store),
        ("GET", f"/api/models/{REPO}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", Handler.tree),
        ("GET", f"/api/models/{REPO}(/revision/(?P<revision>.+))?", Handler.info),
        ("GET HEAD", f"/(api/resolve-cache/models/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    )
    return Handler
