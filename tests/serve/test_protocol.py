"""HTTP/1.1 on raw sockets: limits on headers, time and connections, unread responses, offers to upgrade."""

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
    """Wait, and return True if the server closes the connection."""
    try:
        while opened.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def send_all_of(opened, parts):
    """Send the parts until the server closes the connection, and return the number of bytes sent."""
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


def test_a_connection_that_is_opened_in_advance_may_wait(serving):
    with serving(body_timeout_s=0.1, keep_alive_s=20) as client, connected(client) as opened:
        time.sleep(0.5)
        opened.sendall(request_of("가"))
        assert opened.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"], ids=["new", "used"])
def test_an_idle_connection_is_closed(serving, first):
    with serving(keep_alive_s=0.3) as client, connected(client) as opened:
        opened.sendall(first)
        assert is_closed(opened)


def test_a_running_request_may_outlast_the_client_timeout(serving):
    with serving(body_timeout_s=0.1, max_wait_ms=500.0) as client:
        assert client.post("/embed", json={"inputs": "a"}).status_code == 200


def test_a_body_that_continues_after_its_answer(serving):
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


def test_an_answer_that_is_not_read(serving):
    """The request counts as running until the server closes the connection."""
    with serving(body_timeout_s=0.5) as client, connected(client, SO_RCVBUF=4096) as opened:
        opened.sendall(request_of("가" * 100_000))
        wait_for(client, "koe5_requests_in_work 1.0")
        wait_for(client, 'koe5_request_seconds_count{route="/tokenize",status="200"} 1.0')
        assert "koe5_requests_in_work 0.0" in client.get("/metrics").text
        # The server closes the connection without sending the rest.
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
        # Existing connections still work.
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
        # The connection stays open.
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
    raise AssertionError(f"{line} did not appear: {text}")


OFFER = (
    b"connection: Upgrade, HTTP2-Settings\r\n"
    b"http2-settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\nupgrade: h2c\r\n"
)
"""Headers that Java's HttpClient sends in its first request over plain HTTP."""


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("cuts", [(), (40,), (-30,), (-3,), (-60, -30, -3)])
def test_an_offer_to_upgrade_is_ignored(client, is_chunked, cuts):
    body = json.dumps({"inputs": "가나다"}).encode()
    length = b"content-length: %d\r\n\r\n%s" % (len(body), body)
    chunks = b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    offered = HEAD + OFFER + (chunks if is_chunked else length)
    with connected(client) as opened:
        sent = 0
        for end in (*(cut % len(offered) for cut in cuts), len(offered)):
            opened.sendall(offered[sent:end])
            sent = end
            time.sleep(0.05)  # so that the parts arrive in separate reads
        first = opened.recv(65536)
        opened.sendall(request_of("라"))
        second = opened.recv(65536)
    assert first.startswith(b"HTTP/1.1 200 ")
    assert first.endswith(b"]]")
    assert second.startswith(b"HTTP/1.1 200 ")


def test_requests_of_javas_client(client):
    """The bytes and packets of JDK 17's HttpClient, with the headers and the body of LangChain4j."""
    body = b'{\n  "model" : "tiny-seeded:passage",\n  "input" : [ "\xec\x84\x9c\xec\x9a\xb8", "b" ]\n}'
    length, chunked = b"Content-Length: %d\r\n" % len(body), b"Transfer-encoding: chunked\r\n"
    offer = [
        b"POST /v1/embeddings HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n",
        b"Host: 127.0.0.1:8080\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\n",
        b"Upgrade: h2c\r\nAuthorization: Bearer unused\r\nContent-Type: application/json\r\n"
        b"User-Agent: langchain4j-openai\r\n\r\n",
    ]
    packets = [
        [offer[0] + length + offer[1] + offer[2] + body],
        [offer[0] + offer[1] + chunked + offer[2], b"%x\r\n%s\r\n" % (len(body), body), b"0\r\n\r\n"],
        [offer[0] + length + b"Expect: 100-Continue\r\n" + offer[1] + offer[2], body],
    ]
    with connected(client) as opened:
        for parts in packets:
            for part in parts:
                opened.sendall(part)
                time.sleep(0.05)  # so that the parts arrive in separate reads
            answer = opened.recv(65536)
            if b"100-Continue" in parts[0]:
                assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
                answer = answer.partition(b"\r\n\r\n")[2]
            assert answer.startswith(b"HTTP/1.1 200 ")
            data = json.loads(answer.partition(b"\r\n\r\n")[2])["data"]
            assert [item["tokens"] > 3 for item in data] == [True, True]


def test_offers_and_requests_in_a_row(client):
    offered = request_of("가").replace(b"host: a\r\n", b"host: a\r\n" + OFFER)
    get = b"GET /health HTTP/1.1\r\nhost: a\r\n" + OFFER + b"\r\n"
    closing = request_of("나").replace(b"host: a", b"host: a\r\nconnection: close")
    with connected(client) as opened:
        opened.sendall((offered + get) * 100 + closing)
        answers = b""
        while part := opened.recv(65536):
            answers += part
    assert answers.count(b"HTTP/1.1 200 ") == 201


@pytest.mark.parametrize("last", [(b"HTTP/1.1", b"HTTP/1.0"), (b"Upgrade,", b"close, Upgrade,")])
@pytest.mark.parametrize("pause_s", [0, 0.05])
def test_an_offer_on_a_connection_that_is_not_kept(client, last, pause_s):
    head, _, body = request_of("가").replace(b"host: a\r\n", b"host: a\r\n" + OFFER).rpartition(b"\r\n")
    with connected(client) as opened:
        opened.sendall(head.replace(*last) + b"\r\n")
        time.sleep(pause_s)  # so that the parts may arrive in separate reads
        opened.sendall(body)
        assert opened.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert is_closed(opened)


def test_connect_is_rejected(client):
    with connected(client) as opened:
        opened.sendall(b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n")
        assert opened.recv(65536).startswith(b"HTTP/1.1 4")
