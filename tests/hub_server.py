"""A minimal simulation of the Hub on the loopback interface."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = "owner/koe5-int8"
TOKEN = "hf_of_the_owner"
"""Token that may write."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def settings(endpoint: str, home: Path, offline: bool = False) -> dict[str, str]:
    """Return environment variables for a process in which huggingface_hub uses only `endpoint`."""
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }


@dataclass
class Hub:
    """Files of the server, and the names of those that were downloaded."""

    files: dict[str, bytes]
    repository: str = REPOSITORY
    endpoint: str = ""
    break_off: str = ""
    """Name of a file whose transfer the server interrupts."""
    fetched: list[str] = field(default_factory=list)
    created: dict[str, object] = field(default_factory=dict)
    """Body of the request that created the repository."""
    exists: bool = False
    """True if a public repository of this name existed before."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Uploaded large files by SHA-256."""
    commits: list[list[str]] = field(default_factory=list)
    """Files of each commit, with "-" in front of deleted ones."""


class Handler(BaseHTTPRequestHandler):
    """The routes of `snapshot_download`, `HfFileSystem` and `create_commit`.

    Source: https://huggingface.co/docs/hub/api
    """

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path).strip("/")
        # Datasets have the same routes under another prefix.
        path = path.replace("api/datasets/", "api/models/").removeprefix("datasets/")
        repository = self.hub.repository
        model = f"api/models/{repository}"
        if path in (model, *(f"{model}/revision/{name}" for name in ("main", "v1", COMMIT))):
            siblings = [{"rfilename": name} for name in self.hub.files]
            private = "private" in json.dumps(self.hub.created) and not self.hub.exists
            self.reply_json({"id": repository, "sha": COMMIT, "siblings": siblings, "private": private})
        elif path.startswith((f"{model}/tree/main", f"{model}/tree/{COMMIT}")):
            folder = path.removeprefix(f"{model}/tree/").partition("/")[2]
            self.reply_tree(folder, "recursive=true" in url.query.lower())
        elif path.startswith((f"{repository}/resolve/{COMMIT}/", f"{repository}/resolve/main/")):
            self.reply_file(path.removeprefix(f"{repository}/resolve/").partition("/")[2])
        elif path.startswith(f"{model}/tree/"):
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        elif path.startswith(f"{model}/revision/"):
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        else:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def reply_tree(self, folder: str, is_recursive: bool) -> None:
        start = f"{folder}/" if folder else ""
        names = [name for name in self.hub.files if name.startswith(start)]
        if not names:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        folders = {
            start + name[len(start) :].partition("/")[0] for name in names if "/" in name[len(start) :]
        }
        listed = [name for name in names if is_recursive or "/" not in name[len(start) :]]
        directories = [{"type": "directory", "path": path, "size": 0, "oid": COMMIT} for path in folders]
        self.reply_json([*directories, *map(self.describe, listed)])

    def do_POST(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        repository = self.hub.repository
        model = f"api/models/{repository}"
        if path == "api/validate-yaml":
            self.reply_json({"errors": [], "warnings": []})
        elif not self.may_write():
            return
        elif path == "api/repos/create":
            self.hub.created = json.loads(body)
            self.reply_json({"url": f"{self.hub.endpoint}/{repository}"})
        elif path.startswith((f"{model}/preupload/", f"{model}/branch/")):
            files = [one["path"] for one in json.loads(body).get("files", [])]
            self.reply_json({"files": [self.upload_mode(name) for name in files]})
        elif path == f"{repository}.git/info/lfs/objects/batch":
            objects = [one | self.upload_action(one["oid"]) for one in json.loads(body)["objects"]]
            self.reply_json({"transfer": "basic", "objects": objects})
        elif path.startswith(f"{model}/commit/"):
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def upload_mode(self, name: str) -> dict[str, object]:
        # Like the Hub, treat weights as large files.
        mode = "lfs" if "onnx" in name else "regular"
        return {"path": name, "uploadMode": mode, "shouldIgnore": False}

    def upload_action(self, oid: str) -> dict[str, object]:
        return {"actions": {"upload": {"href": f"{self.hub.endpoint}/objects/{oid}", "header": {}}}}

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.objects[self.path.rpartition("/")[2]] = content
        self.reply(200, b"", {})

    def may_write(self) -> bool:
        """Return True if the request has the owner's token; otherwise refuse it."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != TOKEN:
            known = token == "hf_of_a_reader"
            self.reply(403 if known else 401, b"", {"X-Error-Message": "refused"})
        return token == TOKEN

    def commit(self, lines: list[dict[str, Any]]) -> None:
        _header, *operations = lines
        done = []
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "deletedFile":
                del self.hub.files[value["path"]]
                done.append(f"-{value['path']}")
                continue
            is_large = operation["key"] == "lfsFile"
            content = self.hub.objects[value["oid"]] if is_large else base64.b64decode(value["content"])
            self.hub.files[value["path"]] = content
            done.append(value["path"])
        self.hub.commits.append(done)
        address = f"{self.hub.endpoint}/{self.hub.repository}/commit/{COMMIT}"
        self.reply_json({"commitUrl": address, "commitOid": COMMIT})

    def describe(self, name: str) -> dict[str, object]:
        content = self.hub.files[name]
        oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def reply_file(self, name: str) -> None:
        if name not in self.hub.files:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        content = self.hub.files[name]
        if self.command == "GET":
            self.hub.fetched.append(name)
        etag = hashlib.sha256(content).hexdigest()
        self.reply(
            200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, cut=name == self.hub.break_off
        )

    def reply_json(self, data: object) -> None:
        self.reply(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Suppress the log."""


@contextmanager
def serving(files: dict[str, bytes], repository: str = REPOSITORY) -> Iterator[Hub]:
    """Serve files as one repository."""
    hub = Hub(files, repository)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
