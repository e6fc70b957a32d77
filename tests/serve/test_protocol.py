"""What a client may do to a connection: its head and its time are bounded, and what it leaves unread."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

HEAD = b"POST /tokenize HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"


@contextlib.contextmanager
def connected(client, **options):
    with socket.socket() as opened:
        for name, value in options.items():
            opened.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        opened.settimeout(20)
        opened.connect((client.base_url.host, client.base_url.port))
        yield opened


def is_closed(opened):
    """Whether the server ends the connection; waits for it."""
    try:
        while opened.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def send_all_of(opened, parts):
    """Send until the server has had enough; how many bytes that were."""
    sent = 0
    try:
        for part in parts:
            opened.sendall(part)
            sent += len(part)
    except ConnectionError:
        pass
    return sent


ENDLESS = {
    "url": [b"GET /", *[b"a" * 10_000] * 3000],
    "one header": [HEAD, b"x: ", *[b"a" * 10_000] * 3000],
    "many headers": [HEAD, *[b"x: " + b"a" * 1000 + b"\r\n"] * 30_000],
    "trailers": [
        HEAD,
        b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
        *[b"x: " + b"a" * 1000 + b"\r\n"] * 30_000,
    ],
    "empty lines": [*[b"\r\n" * 5000] * 3000],
}


@pytest.mark.parametrize("parts", ENDLESS.values(), ids=ENDLESS)
def test_a_head_without_end(client, parts):
    with connected(client) as opened:
        sent = send_all_of(opened, parts)
        assert is_closed(opened)
    assert sent < 10_000_000
    assert client.get("/health").status_code == 200


def test_a_head_as_large_as_it_may_be(client):
    headers = {f"x-{number}": "a" * 1000 for number in range(60)}
    assert client.post("/embed", json={"inputs": "a"}, headers=headers).status_code == 200
    with connected(client) as opened:
        opened.sendall(HEAD + b"x: " + b"a" * 66_000)
        assert opened.recv(4096).startswith(b"HTTP/1.1 431 ")


SLOW = {
    "nothing": b"",
    "half a line": b"GET /hea",
    "half a head": b"GET /health HTTP/1.1\r\nhost: a\r\n",
    "a second one": b"GET /health HTTP/1.1\r\nhost: a\r\n\r\nGET /hea",
    "an empty line": b"\r\n",
}


@pytest.mark.parametrize("first", SLOW.values(), ids=SLOW)
def test_a_head_that_does_not_come(serving, first):
    with serving(body_timeout_s=0.3) as client, connected(client) as opened:
        opened.sendall(first)
        if b"\r\n\r\n" in first:
            assert opened.recv(4096).startswith(b"HTTP/1.1 200 ")
            opened.sendall(b"l")
        assert is_closed(opened)


def test_a_request_in_work_may_take_longer_than_its_client_may(serving):
    with serving(body_timeout_s=0.1, max_wait_ms=500.0) as client:
        assert client.post("/embed", json={"inputs": "a"}).status_code == 200


def test_a_body_that_goes_on_after_its_answer(serving):
    with serving(body_timeout_s=0.3, max_body_bytes=1000) as client, connected(client) as opened:
        opened.sendall(HEAD + b"content-length: 1000000\r\n\r\n{")
        assert opened.recv(4096).startswith(b"HTTP/1.1 413 ")
        end = time.monotonic() + 20
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end:
                opened.sendall(b"a")
                time.sleep(0.02)
        assert time.monotonic() < end


def request_of(text):
    body = json.dumps({"inputs": text}).encode()
    return HEAD + b"content-length: %d\r\n\r\n" % len(body) + body


def test_an_answer_that_is_not_taken(serving):
    """It counts as in work, and its connection ends."""
    with serving(body_timeout_s=0.5) as client, connected(client, SO_RCVBUF=4096) as opened:
        opened.sendall(request_of("가" * 100_000))
        wait_for(client, "koe5_requests_in_work 1.0")
        wait_for(client, 'koe5_request_seconds_count{route="/tokenize",status="200"} 1.0')
        assert "koe5_requests_in_work 0.0" in client.get("/metrics").text
        # Less than the whole answer came.
        assert is_closed(opened)


def test_a_large_answer_arrives_whole(client, offline):
    text = "가 " * 50_000
    answer = client.post("/tokenize", json={"inputs": text})
    assert int(answer.headers["content-length"]) == len(answer.content) > 1_000_000
    assert [token["id"] for token in answer.json()[0]] == [piece.id for piece in offline.pieces(text)]


def test_answers_that_fill_the_memory_get_429(serving):
    with serving(max_pending_bytes=200_000) as client:
        answer = client.post("/tokenize", json={"inputs": "가 " * 10_000})
        assert (answer.status_code, answer.json()["error_type"]) == (429, "Overloaded")
        assert answer.headers["retry-after"] == "1"
        assert client.post("/tokenize", json={"inputs": "가 " * 500}).status_code == 200


def test_more_connections_than_allowed_are_closed(serving):
    with serving(max_requests=2) as client, contextlib.ExitStack() as stack:
        assert client.get("/health").status_code == 200
        several = [stack.enter_context(connected(client)) for _ in range(70)]
        assert all(map(is_closed, several[64:]))
        # Those that were there are served.
        assert client.get("/health").status_code == 200


def test_an_answer_is_one_packet(client):
    with connected(client) as opened:
        opened.sendall(request_of("가 나"))
        head, _, body = opened.recv(65536).partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    assert [token["text"] for token in json.loads(body)[0] if not token["special"]][-1] == "나"


def test_the_head_that_answers_head_is_sent(client):
    with connected(client) as opened:
        opened.sendall(b"HEAD /health HTTP/1.1\r\nhost: a\r\n\r\n")
        assert opened.recv(4096).endswith(b"\r\n\r\n")
        # And the connection goes on.
        opened.sendall(request_of("가"))
        assert opened.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_asks_before_it_sends_the_body(client):
    head, _, body = request_of("가").partition(b"\r\n\r\n")
    with connected(client) as opened:
        opened.sendall(head + b"\r\nexpect: 100-continue\r\n\r\n")
        assert opened.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        opened.sendall(body)
        assert opened.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_requests_in_a_row_and_the_last_ends_the_connection(client):
    closing = request_of("나").replace(b"host: a", b"host: a\r\nconnection: close")
    with connected(client) as opened:
        opened.sendall(request_of("가") * 2 + closing)
        answers = b""
        while part := opened.recv(65536):
            answers += part
    assert answers.count(b"HTTP/1.1 200 ") == 3
    assert answers.endswith(b"}]]")


def wait_for(client, line):
    for _ in range(1000):
        if line in (text := client.get("/metrics").text):
            return
        time.sleep(0.01)
    raise AssertionError(f"{line} never came: {text}")
