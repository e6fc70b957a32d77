"""Requests as clients, browsers and proxies send them, with HEAD, CORS, extra slashes, prefixes and keys."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tolerances import UNIT_LENGTH_ATOL

from koe5_onnx import Embedder, EngineOptions, InputError
from koe5_onnx.cli.serve import hash_keys
from koe5_onnx.serve import Settings

KEY = "s3cret-key"
KEYS = (hashlib.sha256(KEY.encode()).hexdigest(),)
AUTHORIZED = {"authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "path",
    [
        "/health", "/", "/metrics", "/info", "/v1/models", "/v1/models/nlpai-lab/KoE5", "/v1/models/none",
        "/docs", "/openapi.json", "/docs-files/swagger-ui.css", "/unknown",
    ],
)  # fmt: skip
def test_head_is_get_without_a_body(client, path):
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers.get("content-type") == get.headers.get("content-type")
    assert client.head("/embed").status_code == 405


@pytest.mark.parametrize(
    "path",
    ["/v1/embeddings/", "//v1/embeddings", "///v1//embeddings//", "/v1/embeddings", "/v1/v1/embeddings"],
)
def test_slashes_of_a_base_url(client, path):
    answer = client.post(
        f"{str(client.base_url).rstrip('/')}{path}", json={"input": "가"}, follow_redirects=False
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("target", [b"/", b"/health", b"/v1/models", b"*"])
def test_options_as_load_balancers_send_it(serving, caplog, target):
    """By default, HAProxy sends OPTIONS / in HTTP/1.0 without a host, and Apache sends OPTIONS *."""
    with serving(api_keys_sha256=KEYS) as client, caplog.at_level(logging.INFO, logger="koe5_onnx.serve"):
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as opened:
            opened.sendall(b"OPTIONS " + target + b" HTTP/1.0\r\n\r\n")
            head = opened.recv(4096)
        assert client.options("/unknown").status_code == 404
    assert head.startswith(b"HTTP/1.1 204 ")
    methods = b"GET, HEAD, POST" if target in (b"/", b"*") else b"GET, HEAD"
    assert b"\r\nallow: " + methods + b"\r\n" in head
    logged = [one.fields["path"] for one in caplog.records if one.getMessage() == "request"]
    assert logged == ["other"], "only the error is logged"


@pytest.mark.parametrize("prefix", ["", "/koe5"])
def test_behind_a_proxy_that_publishes_a_prefix(serving, prefix):
    """The proxy removes the prefix, or passes it on."""
    with serving(root_path="/koe5", api_keys_sha256=KEYS) as client:
        assert client.get(f"{prefix}/health").status_code == 200
        assert client.post(f"{prefix}/embed", json={"inputs": "가"}, headers=AUTHORIZED).status_code == 200
        assert client.post(f"{prefix}/embed", json={"inputs": "가"}).status_code == 401
        assert "/koe5/openapi.json" in client.get(f"{prefix}/docs").text
        assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/koe5"}]
        script = re.search(r'src="([^"]+\.js)"', client.get(f"{prefix}/docs").text)[1]
        assert client.get(script).status_code == 200
        unknown = client.get(f"{prefix}/v1/x", headers=AUTHORIZED)
        assert unknown.json()["error"]["message"].startswith("there is no GET /v1/x")
        invalid = client.post(f"{prefix}/v1/embeddings", json={}, headers=AUTHORIZED)
        assert invalid.json()["error"]["param"] == "input"
        assert client.get("/koe5x/health").status_code == 401


@pytest.mark.parametrize("root_path", ["koe5", "/", "/koe5/", "//koe5"])
def test_a_root_path_that_is_no_path(root_path):
    with pytest.raises(InputError, match=r"root_path is .*: expected a path like '/embeddings'"):
        Settings(artifact="a", root_path=root_path)


@pytest.mark.parametrize("origins", [("https://app.example/",), ("*",)])
def test_cors(serving, origins):
    asks = {"origin": "https://app.example", "access-control-request-method": "POST"}
    asks["access-control-request-headers"] = "authorization, content-type, x-request-id"
    with serving(cors_allow_origins=origins, api_keys_sha256=KEYS) as client:
        preflight = client.options("/v1/embeddings", headers=asks)
        assert (preflight.status_code, preflight.content) == (204, b"")
        allowed = preflight.headers["access-control-allow-origin"]
        assert allowed in ("https://app.example", "*")
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        for headers in ({}, AUTHORIZED):
            answer = client.post("/v1/embeddings", json={"input": 1}, headers={**asks, **headers})
            assert answer.status_code == (400 if headers else 401)
            assert answer.headers["access-control-allow-origin"] == allowed
        other = client.options("/v1/embeddings", headers={**asks, "origin": "https://other.example"})
        assert other.status_code == (204 if origins == ("*",) else 400)


def test_no_cors_by_default(client):
    answer = client.options(
        "/embed", headers={"origin": "https://a.example", "access-control-request-method": "POST"}
    )
    assert answer.status_code == 405
    headers = client.get("/health", headers={"origin": "https://a.example"}).headers
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("name", ["x-api-key", "api-key", "X-API-Key"])
def test_other_headers_of_a_key(serving, name):
    with serving(api_keys_sha256=KEYS) as client:
        assert client.post("/embed", json={"inputs": "가"}, headers={name: KEY}).status_code == 200
        assert client.post("/embed", json={"inputs": "가"}, headers={name: "other"}).status_code == 401
        both = {name: KEY, "authorization": "Bearer not-needed"}
        assert client.post("/embed", json={"inputs": "가"}, headers=both).status_code == 200


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_key_files_of_windows(tmp_path, encoding):
    (tmp_path / "keys").write_bytes(f"{KEY}\r\n# comment\r\n\r\n".encode(encoding))
    assert hash_keys(tmp_path / "keys", "") == KEYS


def test_a_key_file_in_another_encoding(tmp_path):
    (tmp_path / "keys").write_bytes(b"\xff\x00\xe9")
    with pytest.raises(InputError, match=r"keys is not UTF-8 .*Save it as UTF-8"):
        hash_keys(tmp_path / "keys", "")


@pytest.mark.parametrize("file", ["Dockerfile", "Dockerfile.cuda"])
def test_the_health_check_of_the_image_ignores_proxies(client, file):
    dockerfile = (Path(__file__).parents[2] / "deploy" / file).read_text()
    command = json.loads(re.search(r"HEALTHCHECK .*\n +CMD (\[.*\])", dockerfile)[1])
    command[-1] = command[-1].replace("http://127.0.0.1:8080", str(client.base_url).rstrip("/"))
    proxy = {"http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}
    subprocess.run([sys.executable, *command[1:]], check=True, env={**os.environ, **proxy}, timeout=60)


def test_the_client_address_of_a_proxy_is_logged(serving, caplog):
    with serving() as client, caplog.at_level(logging.INFO, logger="koe5_onnx.serve"):
        client.post("/embed", json={"inputs": "가"}, headers={"x-forwarded-for": "192.0.2.7"})
    fields = [one.fields for one in caplog.records if getattr(one, "fields", {}).get("path") == "/embed"]
    assert fields[-1]["client"] == "192.0.2.7"


def test_averages_of_long_texts(serving, artifact):
    text = "서울은 대한민국의 수도이다. " * 200
    options = EngineOptions(threads=1, overflow="average")
    with Embedder.open(artifact, options=options) as embedder:
        expected = embedder.encode([text, "짧다"], prompt="")
        ids = [piece.id for piece in embedder.pieces(text, prompt="")]
    with serving(engine=options) as client:
        for inputs in ([text, "짧다"], [ids]):
            answer = client.post("/embed", json={"inputs": inputs})
            assert answer.headers["x-averaged"] == "1"
            assert "x-truncated" not in answer.headers
            np.testing.assert_allclose(answer.json(), expected[: len(inputs)], atol=UNIT_LENGTH_ATOL)
        assert client.post("/embed", json={"inputs": text, "truncate": False}).status_code == 413
        usage = client.post("/v1/embeddings", json={"input": text, "truncate": True}).json()["usage"]
        assert usage == {"prompt_tokens": len(ids), "total_tokens": len(ids)}
        assert "koe5_averaged_inputs_total 3.0" in client.get("/metrics").text


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/embed", b"{", "invalid_api_key"),
        ("/embed", b"a" * 2000, "body_too_large"),
        ("/x", b"", "unknown_url"),
    ],
)
def test_every_refusal_is_in_the_log(serving, caplog, path, body, code):
    headers = {"user-agent": "tester"} | ({} if code == "invalid_api_key" else AUTHORIZED)
    running = serving(api_keys_sha256=KEYS, max_body_bytes=1000)
    with running as client, caplog.at_level(logging.INFO, logger="koe5_onnx.serve"):
        client.post(path, content=body, headers=headers)
    (fields,) = [one.fields for one in caplog.records if one.message == "request"]
    assert (fields["rejected"], fields["user_agent"]) == (code, "tester")
