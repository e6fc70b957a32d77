"""Invalid requests, limits of memory, keys, logs without texts, and embeddings that are not finite."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import socket

import numpy as np
import pytest

from koe5_onnx.serve import Settings
from koe5_onnx.serve.inputs import InputReader, PromptFields
from koe5_onnx.serve.logs import JsonFormatter
from koe5_onnx.serve.refusals import Refusal

JSON = {"content-type": "application/json"}
KEY = "s3cret-key"
KEYS = (hashlib.sha256(b"another").hexdigest(), hashlib.sha256(KEY.encode()).hexdigest())

MALFORMED = {
    "no JSON": b"{",
    "nothing": b"",
    "a list": b"[1]",
    "a text": b'"a"',
    "null": b"null",
    "NaN as text": b'{"input": NaN, "inputs": NaN}',
    "infinity as id": b'{"input": [Infinity], "inputs": [-Infinity]}',
    "a number without end": b'{"input": [' + b"9" * 5000 + b'], "inputs": [' + b"9" * 5000 + b"]}",
    "no UTF-8": b'{"input": "\xff\xfe", "inputs": "\xff\xfe"}',
    "deep": b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a huge number": b'{"input": 1e999, "inputs": 1e999}',
    "a negative id": b'{"input": [0, -1, 2], "inputs": [0, -1, 2]}',
    "an id of 64 bits": b'{"input": [0, 9223372036854775808, 2], "inputs": [0, 9223372036854775808, 2]}',
}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/tokenize", "/similarity"])
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_bodies(client, path, body):
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code in (400, 413, 422)
    error = answer.json()
    assert error["error"]["message"] if path == "/v1/embeddings" else error["error"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_another_content_type(client, path, kind):
    headers = {} if kind is None else {"content-type": kind}
    answer = client.post(path, content=b'{"input": "a", "inputs": "a"}', headers=headers)
    assert answer.status_code in (200, 400, 422)


@pytest.mark.parametrize("declared", [True, False])
def test_ten_megabytes(client, declared):
    body = json.dumps({"input": "가" * 10_000_000}).encode()
    content = body if declared else (body[start : start + 65536] for start in range(0, len(body), 65536))
    answer = client.post("/v1/embeddings", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_below_the_limit_is_cut_as_any_text(client):
    answer = client.post("/v1/embeddings", json={"input": "가나다 " * 60_000})
    assert answer.json()["data"][0]["truncated"] is True


def test_a_body_that_does_not_come(serving):
    with serving(body_timeout_s=0.2) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
            slow.sendall(b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n{")
            assert b"408" in slow.recv(4096).split(b"\r\n")[0]
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/x", 404), ("/x", 404), ("/v1/embeddings", 405), ("/embed", 405)],
)
def test_unknown_routes_and_methods(client, path, status):
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)
    error = answer.json()["error"]
    assert "there is no" in (error["message"] if path.startswith("/v1") else error)


def test_limits_of_a_request(serving):
    with serving(max_inputs=2, max_request_tokens=100) as client:
        assert client.post("/embed", json={"inputs": ["a"] * 2}).status_code == 200
        assert client.post("/embed", json={"inputs": ["a"] * 3}).status_code == 413
        answer = client.post("/v1/embeddings", json={"input": "가 " * 200})
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert client.post("/tokenize", json={"inputs": "가 " * 200}).status_code == 413


@pytest.mark.parametrize("long", ["가" * 1001, [0] * 1001])
def test_a_text_that_is_too_long_even_for_cutting(serving, long):
    with serving(max_text_characters=1000) as client:
        answer = client.post("/v1/embeddings", json={"input": long, "truncate": True})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert "input 0 has 1,001 characters" in answer.json()["error"]["message"]
        assert client.post("/embed", json={"inputs": [long]}).status_code == 413
        assert client.post("/embed", json={"inputs": "가" * 1000}).status_code == 200


@pytest.mark.parametrize(
    ("encoding", "status"), [("gzip", 415), ("br", 415), ("identity", 200), ("UTF-8", 200)]
)
def test_a_compressed_body(client, encoding, status):
    headers = {**JSON, "content-encoding": encoding}
    answer = client.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers)
    assert answer.status_code == status
    assert status == 200 or "not compressed" in answer.json()["error"]["message"]


def test_too_many_requests_get_429(serving):
    with serving(max_requests=2, max_wait_ms=300.0) as client:
        answers = asyncio.run(_at_once(client, 10))
        assert client.post("/embed", json={"inputs": "a"}).status_code == 200
    assert {answer.status_code for answer in answers} == {200, 429}
    assert {answer.headers.get("retry-after") for answer in answers} == {None, "1"}


def test_bodies_that_fill_the_memory_get_429(serving):
    with serving(max_pending_bytes=1000, max_wait_ms=200.0) as client:
        answers = asyncio.run(_at_once(client, 60))
        assert {answer.status_code for answer in answers} == {200, 429}
        # The memory of the rejected requests is released.
        assert client.post("/embed", json={"inputs": "a" * 900}).status_code == 200


def test_a_queue_that_is_full_gets_429(serving):
    with serving(max_queue_tokens=20, max_request_tokens=20, max_wait_ms=200.0) as client:
        answers = asyncio.run(_at_once(client, 10))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) >= 1


async def _at_once(client, count):
    import httpx

    async with httpx.AsyncClient(base_url=client.base_url, timeout=30) as several:
        body = {"input": "가 나 다 라"}
        return await asyncio.gather(*(several.post("/v1/embeddings", json=body) for _ in range(count)))


def test_an_answer_that_takes_too_long(serving):
    with serving(timeout_s=0.05, max_wait_ms=60_000.0) as client:
        answer = client.post("/v1/embeddings", json={"input": "a"})
        slow = client.post("/tokenize", json={"inputs": "가 " * 60_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
    assert (slow.status_code, slow.json()["error_type"]) == (503, "Overloaded")


def test_work_for_a_disconnected_client_is_canceled(serving):
    with serving(max_wait_ms=60_000.0) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as gone:
            body = b'{"inputs": "a"}'
            head = "POST /embed HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            gone.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            _wait_for(client, "koe5_requests_in_work 1.0")
        assert "koe5_queue_tokens 0.0" in _wait_for(client, "koe5_clients_gone_total 1.0")
        _wait_for(client, "koe5_requests_in_work 0.0")


def _wait_for(client, line):
    for _ in range(500):
        if line in (text := client.get("/metrics").text):
            return text
    raise AssertionError(f"{line} did not appear: {text}")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, "Bearer \xe9"])
def test_a_wrong_key(serving_with_keys, header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for path, body in (("/v1/embeddings", {"input": "a"}), ("/embed", {"inputs": "a"}), ("/tokenize", {})):
        answer = serving_with_keys.post(path, json=body, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert serving_with_keys.get("/info", headers=headers).status_code == 401
    assert serving_with_keys.post("/", json={"inputs": "a"}, headers=headers).status_code == 401
    assert serving_with_keys.get("/", headers=headers).status_code == 200
    assert serving_with_keys.get("/health").status_code == 200


def test_the_right_key(serving_with_keys):
    for scheme in ("Bearer", "bearer"):
        headers = {"authorization": f"{scheme} {KEY}"}
        assert serving_with_keys.post("/embed", json={"inputs": "a"}, headers=headers).status_code == 200


@pytest.fixture(scope="module")
def serving_with_keys(serving):
    with serving(api_keys_sha256=KEYS) as client:
        yield client


@pytest.mark.parametrize("log_texts", [False, True])
def test_the_log_has_no_text_and_no_key(serving, caplog, log_texts):
    logger = logging.getLogger("koe5_onnx.serve")
    with serving(api_keys_sha256=KEYS, log_texts=log_texts) as client, caplog.at_level("DEBUG", logger.name):
        headers = {"authorization": f"Bearer {KEY}", "x-request-id": "mine-1"}
        answer = client.post("/v1/embeddings?q=비밀", json={"input": "비밀 text"}, headers=headers)
        client.post("/v1/embeddings", json={"input": "비밀 text", "model": 7}, headers=headers)
        _wait_for(client, 'koe5_request_seconds_count{route="/v1/embeddings",status="400"} 1.0')
    assert answer.headers["x-request-id"] == "mine-1"
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    line = next(one for one in lines if one.get("request_id") == "mine-1")
    assert (line["status"], line["inputs"], line["path"]) == (200, 1, "/v1/embeddings")
    whole = json.dumps(lines, ensure_ascii=False)
    assert KEY not in whole
    assert ("비밀" in whole) == log_texts


@pytest.mark.parametrize("given", ["", "a b", "x" * 200, "é", 'a"b'])
def test_a_request_id_that_could_harm_a_log_is_replaced(client, given):
    answer = client.get("/health", headers={"x-request-id": given.encode()})
    assert len(answer.headers["x-request-id"]) == 32


def test_a_failing_model_is_reported_and_logged(serving, monkeypatch):
    with serving() as client:
        monkeypatch.setattr(
            "koe5_onnx.engine.runner.run_batch",
            lambda session, ids, batch: np.full((len(ids), 64), np.nan, np.float32),
        )
        openai = client.post("/v1/embeddings", json={"input": "a"})
        tei = client.post("/embed", json={"inputs": "a"})
        assert (openai.status_code, openai.json()["error"]["code"]) == (500, "inference_failed")
        assert (tei.status_code, tei.json()["error_type"]) == (424, "Backend")
        assert client.get("/health").status_code == 503
        monkeypatch.undo()
        # /health embeds a text itself, so it recovers before another request succeeds.
        assert client.get("/health").status_code == 200
        assert client.post("/embed", json={"inputs": "a"}).status_code == 200


def test_an_unforeseen_fault_is_an_answer_too(serving, monkeypatch, caplog):
    with serving() as client:
        monkeypatch.setattr("koe5_onnx.serve.openai_api._vectors", lambda *given: 1 / 0)
        answer = client.post("/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.fields["request_id"] == answer.headers["x-request-id"]
    assert record.exc_info[0] is ZeroDivisionError


def test_inputs_are_counted_before_anything_else(offline):
    reader = InputReader(offline, Settings(artifact="", max_inputs=2))
    with pytest.raises(Refusal, match="3 texts"):
        reader.read(["a"] * 3, PromptFields(input_type="unknown"), "input")
