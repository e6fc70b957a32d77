"""Artifacts from the Hub: huggingface_hub's own client against a small Hub on the loopback interface."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from koe5_onnx.artifact import GRAPH, MANIFEST, TOKENIZER, WEIGHTS

REPOSITORY = "owner/koe5-int8"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPEN = """
import sys
from koe5_onnx import Embedder, Koe5Error

try:
    with Embedder.open(sys.argv[1], revision=sys.argv[2] or None, threads=1) as embedder:
        print(embedder.artifact.path.name, embedder.encode(["가나다"]).tobytes().hex())
except Koe5Error as error:
    print(f"{type(error).__name__}: {error}")
"""


@dataclass
class Hub:
    """What the little Hub holds, and what it was asked for."""

    files: dict[str, bytes]
    endpoint: str = ""
    break_off: str = ""
    """File whose transfer ends in the middle."""
    fetched: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """The routes that `snapshot_download` uses: revision, tree and file.

    Source: https://huggingface.co/docs/hub/api
    """

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        model = f"api/models/{REPOSITORY}"
        if path in (f"{model}/revision/main", f"{model}/revision/v1", f"{model}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.hub.files]
            self.reply_json({"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings})
        elif path == f"{model}/tree/{COMMIT}":
            self.reply_json([self.describe(name) for name in self.hub.files])
        elif path.startswith(f"{REPOSITORY}/resolve/{COMMIT}/"):
            self.reply_file(path.rpartition("/")[2])
        elif path.startswith(f"{model}/revision/"):
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        else:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def describe(self, name: str) -> dict[str, object]:
        content = self.hub.files[name]
        oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def reply_file(self, name: str) -> None:
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
        """Keep stderr clean."""


@pytest.fixture
def hub(artifact_path: Path) -> Iterator[Hub]:
    files = {name: (artifact_path / name).read_bytes() for name in (MANIFEST, GRAPH, WEIGHTS, TOKENIZER)}
    hub = Hub({**files, "README.md": b"# read me", "model.safetensors": b"not wanted"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def open_from(run_python, tmp_path: Path) -> Callable[..., str]:
    """Opens a Hub id in a process of its own, as the client reads its settings when imported."""

    def run(endpoint: str, name: str = REPOSITORY, revision: str = "", offline: bool = False) -> str:
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        done: subprocess.CompletedProcess[str] = run_python(OPEN, name, revision, **settings)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def expected(embedder) -> str:
    """What OPEN prints when all went well."""
    return f"{COMMIT} {embedder.encode(['가나다']).tobytes().hex()}"


@pytest.mark.parametrize("revision", ["", "main", "v1", COMMIT])
def test_opens_what_the_hub_has(hub, open_from, expected, revision):
    assert open_from(hub.endpoint, revision=revision) == expected
    assert sorted(hub.fetched) == sorted([MANIFEST, GRAPH, WEIGHTS, TOKENIZER])


def test_second_time_from_the_cache(hub, open_from, expected):
    assert open_from(hub.endpoint) == expected
    hub.fetched.clear()
    assert open_from(hub.endpoint) == expected
    assert open_from(hub.endpoint, offline=True) == expected
    assert hub.fetched == []


def test_offline_without_cache(hub, open_from):
    output = open_from(hub.endpoint, offline=True)
    assert output.startswith(
        f"ArtifactError: there is no folder {REPOSITORY} here, and as a Hub id it fails: "
    )
    assert "HF_HUB_OFFLINE" in output
    assert hub.fetched == []


def test_unknown_repository(hub, open_from):
    output = open_from(hub.endpoint, name="nobody/nothing")
    assert output.startswith(
        "ArtifactError: there is no folder nobody/nothing here, and as a Hub id it fails: "
    )
    assert "cannot fetch nobody/nothing from the Hub" in output


def test_unknown_revision(hub, open_from):
    output = open_from(hub.endpoint, revision="v9")
    assert output.startswith("ArtifactError: ")
    assert f"cannot fetch {REPOSITORY} at revision v9 from the Hub" in output


def test_server_down(open_from):
    # Port 9 (discard) of the loopback interface: nothing listens there.
    output = open_from("http://127.0.0.1:9")
    assert output.startswith("ArtifactError: there is no folder")
    assert "Check the name, the network" in output


def test_a_transfer_that_breaks_off(hub, open_from):
    hub.break_off = WEIGHTS
    assert open_from(hub.endpoint).startswith("ArtifactError: ")


def test_a_repository_without_an_artifact(hub, open_from):
    del hub.files[MANIFEST]
    assert "has no manifest.json: expected a folder made by koe5-onnx export" in open_from(hub.endpoint)


def test_bytes_that_changed_on_the_way(hub, open_from):
    content = bytearray(hub.files[WEIGHTS])
    content[1000] ^= 1
    hub.files[WEIGHTS] = bytes(content)
    assert f"{WEIGHTS} does not have the SHA-256 of its manifest" in open_from(hub.endpoint)
