"""Closed-loop clients of a server: each client waits for its answer before it sends the next request.

Clients run on the same cores as the server, so they must use little CPU time: requests are built beforehand,
connections stay open, and a C library parses the answers. The clients' CPU time is reported separately.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httptools
import numpy as np
import orjson
import uvloop

from benchmarks.speed.servers import Server

T = TypeVar("T")


@dataclass
class Load:
    """Measurements of the clients of one run."""

    seconds: float = 0.0
    errors: int = 0
    client_seconds: float = 0.0
    """CPU time of the clients."""
    server_seconds: float = 0.0
    """CPU time of the server, all threads."""
    milliseconds: list[float] = field(default_factory=list)
    """Latency of each request with a correct answer."""


class _Connection(asyncio.Protocol):
    """An open connection that handles one request at a time."""

    def __init__(self) -> None:
        self._body = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), bytes(self._body)))
        self._body.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(f"the server closed the connection: {exc}"))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return the status and body of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)  # type: ignore[attr-defined]
        return await self._answer

    def close(self) -> None:
        self._transport.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run clients in an event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def load(server: Server, texts: Sequence[str], concurrency: int) -> Load:
    """Send one request per text from `concurrency` clients and return the measurements."""
    found = Load()
    waiting = iter([request_of(server, [text]) for text in texts])
    async with _connected(server, concurrency) as connections:
        server_before, before, start = server.cpu_seconds(), time.process_time(), time.perf_counter()
        await asyncio.gather(*(_client(one, server, waiting, found) for one in connections))
        found.seconds = time.perf_counter() - start
        found.client_seconds = time.process_time() - before
        found.server_seconds = server.cpu_seconds() - server_before
    return found


async def beside_bulk(
    server: Server, queries: Sequence[str], bulk: Sequence[str], clients: int
) -> tuple[list[float], float]:
    """Send queries one after the other while `clients` other clients repeatedly send the texts `bulk`.

    Returns:
        Milliseconds of each query, and texts per second of the other clients.
    """
    found, texts = Load(), 0
    request = request_of(server, bulk)

    async def send_bulk(connection: _Connection) -> None:
        nonlocal texts
        while True:
            if _is_right(await connection.ask(request), server, len(bulk)):
                texts += len(bulk)

    async with _connected(server, clients + 1) as (first, *others):
        senders = [asyncio.create_task(send_bulk(one)) for one in others]
        start = time.perf_counter()
        await asyncio.sleep(1.0)  # until the machine is fully loaded
        await _client(first, server, iter([request_of(server, [query]) for query in queries]), found)
        rate = texts / (time.perf_counter() - start)
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
    return found.milliseconds, rate


def request_of(server: Server, texts: Sequence[str]) -> bytes:
    """Return a complete HTTP request for texts that include prompts."""
    body = json.dumps({"input": list(texts), "model": server.model, "encoding_format": "base64"}).encode()
    head = (
        f"POST {server.path} HTTP/1.1\r\nhost: {server.host}:{server.port}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def _connected(server: Server, count: int) -> AsyncIterator[list[_Connection]]:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        connections: list[_Connection] = []
        for _ in range(count):
            _, connection = await loop.create_connection(_Connection, server.host, server.port)
            stack.callback(connection.close)
            connections.append(connection)
        yield connections


async def _client(connection: _Connection, server: Server, waiting: Iterator[bytes], found: Load) -> None:
    for request in waiting:
        start = time.perf_counter()
        answer = await connection.ask(request)
        milliseconds = 1000 * (time.perf_counter() - start)
        if _is_right(answer, server, 1):
            found.milliseconds.append(milliseconds)
        else:
            found.errors += 1


def _is_right(answer: tuple[int, bytes], server: Server, texts: int) -> bool:
    """Return True if the answer has one embedding per text, each finite and of the right dimension."""
    status, body = answer
    if status != 200:
        return False
    items = orjson.loads(body)["data"]
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in items]
    return len(rows) == texts and all(len(row) == server.dim and bool(np.isfinite(row).all()) for row in rows)
