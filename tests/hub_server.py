"""A minimal simulation of the Hub on the loopback interface."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = "owner/koe5-int8"
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


class Handler(BaseHTTPRequestHandler):
    """The routes that `snapshot_download` and `HfFileSystem` read: revision, tree and file.

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
            self.reply_json({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings})
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
        if self.command == "GET":
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
