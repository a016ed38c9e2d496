"""
A Hugging Face Hub on this computer, as far as huggingface_hub's client makes, fills and downloads models: real requests over
HTTP. A model is a folder under ``root``, whose present content is the branch "main".

How a Hub answers, with which headers and error codes, is what the client reads (huggingface_hub 2.4.0: hf_api.py,
_commit_api.py, lfs.py, file_download.py, utils/_http.py).
"""

import base64
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

# What a new model's .gitattributes on the Hub puts into LFS
_LARGE = ("*.safetensors", "*.zip", "*.pkl", "*.mp4", "*.png")


def is_large(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in _LARGE)


def etag(path: str, content: bytes) -> str:
    """Of a file in LFS its SHA-256, of another git's SHA-1."""
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """
    :param root: folder of folders "user/name"
    :param token: the only token that may write
    """

    daemon_threads = True

    def __init__(self, root: Path, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.token = token
        self.url = f"http://127.0.0.1:{self.server_port}"
        # Another host, to which the client must not show the token
        self.storage_url = f"http://localhost:{self.server_port}"
        self.requests: list[str] = []
        """Method and path of each request."""
        self.breakdowns: list[tuple[str, int | str]] = []
        """
        Pattern of "METHOD path", and what happens to such requests: a status, "cut" (the connection ends in the middle of the
        body), "cut once" (the first time only), "short" (half a body, as if that were all), or "hang up" (no answer).
        """
        self.large: dict[str, bytes] = {}
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}

    def head(self, repo: str) -> str:
        """The commit that "main" is at."""
        folder = self.root / repo
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        listing = json.dumps([(name, etag(name, files[name])) for name in sorted(files)])
        commit = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[repo, commit] = files
        return commit

    @contextmanager
    def serving(self) -> Iterator["HubServer"]:
        thread = Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Refusal(Exception):
    """A status, and the headers from which the client makes its errors."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {self.path}"
        self.server.requests.append(request)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.how = None
        for i, (pattern, how) in enumerate(self.server.breakdowns):
            if re.search(pattern, request):
                self.how = how
                if how == "cut once":
                    del self.server.breakdowns[i]
                break
        if self.how == "hang up":
            self.close_connection = True
            return
        try:
            if isinstance(self.how, int):
                raise _Refusal(self.how)
            for pattern, answer in _ROUTES.items():
                if match := re.fullmatch(pattern, request):
                    answer(self, *match.groups())
                    return
            raise AssertionError(f"a request that no Hub answers: {request}")
        except _Refusal as refusal:
            self._send(json.dumps({"error": str(refusal)}).encode(), refusal.status, **refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # http.server's names

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        cut = content[: len(content) // 2] if str(self.how).startswith("cut") or self.how == "short" else content
        if "Range" in self.headers and str(self.how).startswith("cut"):
            cut = b""  # the rest is as unreachable
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(cut if self.how == "short" else content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(cut)
        if cut != content and self.how != "short":
            self.close_connection = True

    def _send_json(self, data: Any, status: int = 200) -> None:
        self._send(json.dumps(data).encode(), status, Content_Type="application/json")

    def _check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            raise _Refusal(401, message="Invalid credentials in Authorization header")

    def _files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        if "Authorization" in self.headers:
            self._check_token()
        if not (self.server.root / repo).is_dir():
            raise _Refusal(401 if "Authorization" not in self.headers else 404, "RepoNotFound", "Repository not found")
        commit = self.server.head(repo) if revision == "main" else revision
        if (repo, commit) not in self.server.commits:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, self.server.commits[repo, commit]

    def create(self) -> None:
        self._check_token()
        order = json.loads(self.body)
        repo = f"{order['organization']}/{order['name']}"
        folder = self.server.root / repo
        existed = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        self._send_json({"url": f"{self.server.url}/{repo}", "name": repo}, 409 if existed else 200)

    def validate_yaml(self) -> None:
        """As strict as the client's own reader of cards."""
        from huggingface_hub import ModelCard

        content = json.loads(self.body)["content"]
        errors = []
        try:
            ModelCard(content, ignore_metadata_errors=False)
        except (ValueError, yaml.YAMLError) as error:
            errors.append({"message": str(error)})
        self._send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def info(self, repo: str, revision: str = "main") -> None:
        commit, files = self._files(repo, revision)
        self._send_json({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    def tree(self, repo: str, revision: str) -> None:
        _, files = self._files(repo, revision)
        listing = []
        for name, content in files.items():
            entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if is_large(name):
                entry["lfs"] = {"oid": etag(name, content), "size": len(content), "pointerSize": 130}
            listing.append(entry)
        self._send_json(listing)

    def preupload(self, repo: str) -> None:
        self._check_token()
        _, files = self._files(repo, "main")
        answer = []
        for file in json.loads(self.body)["files"]:
            name = file["path"]
            answer.append({"path": name, "uploadMode": "lfs" if is_large(name) else "regular", "shouldIgnore": False})
            if name in files:
                answer[-1]["oid"] = etag(name, files[name])
        self._send_json({"files": answer})

    def lfs_batch(self, repo: str) -> None:
        self._check_token()
        objects = []
        for file in json.loads(self.body)["objects"]:
            objects.append({"oid": file["oid"], "size": file["size"]})
            if file["oid"] not in self.server.large:
                objects[-1]["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{file['oid']}"}}
        self._send_json({"transfer": "basic", "objects": objects})

    def store_large(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400, message="other content than announced")
        self.server.large[oid] = self.body
        self._send(b"")

    def commit(self, repo: str) -> None:
        self._check_token()
        self._files(repo, "main")
        folder = self.server.root / repo
        for operation in map(json.loads, self.body.splitlines()):
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                (folder / value["path"]).write_bytes(self.server.large[value["oid"]])
            elif kind == "deletedFile":
                (folder / value["path"]).unlink()
            else:
                assert kind == "header", kind
        oid = self.server.head(repo)
        self._send_json({"commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "commitOid": oid})

    def resolve(self, repo: str, revision: str, name: str) -> None:
        """Small files are sent, of large ones the place is told, as the Hub does."""
        commit, files = self._files(repo, revision)
        if name not in files:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        content, tag = files[name], etag(name, files[name])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}
        if is_large(name):
            self.server.large[tag] = content
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
            self._send(b"", 302, **headers, Location=f"{self.server.storage_url}/lfs/{tag}")
        else:
            self._send_range(content, **headers)

    def large(self, oid: str) -> None:
        assert "Authorization" not in self.headers
        self._send_range(self.server.large[oid])

    def _send_range(self, content: bytes, **headers: str) -> None:
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(content[start:], 206, **headers)
        else:
            self._send(content, **headers)


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES = {
    "POST /api/repos/create": _Handler.create,
    "POST /api/validate-yaml": _Handler.validate_yaml,
    rf"GET /api/models/{_REPO}": _Handler.info,
    rf"GET /api/models/{_REPO}/revision/(.+)": _Handler.info,
    rf"GET /api/models/{_REPO}/tree/(\w+)": _Handler.tree,
    rf"POST /api/models/{_REPO}/preupload/main": _Handler.preupload,
    rf"POST /{_REPO}\.git/info/lfs/objects/batch": _Handler.lfs_batch,
    "PUT /lfs/(\\w+)": _Handler.store_large,
    rf"POST /api/models/{_REPO}/commit/main": _Handler.commit,
    rf"(?:GET|HEAD) /{_REPO}/resolve/(\w+)/(.+)": _Handler.resolve,
    "(?:GET|HEAD) /lfs/(\\w+)": _Handler.large,
}
