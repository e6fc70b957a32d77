"""Clients of a server, many at once: a closed loop, each waits for its answer before it asks again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp

from benchmarks.speed.servers import Server

_HEADERS = {"content-type": "application/json"}


@dataclass
class Load:
    """What the clients of one run saw."""

    seconds: float = 0.0
    errors: int = 0
    milliseconds: list[float] = field(default_factory=list)
    """Of each request that was answered."""


async def load(server: Server, texts: Sequence[str], concurrency: int) -> Load:
    """Ask for each text once, in requests of one text."""
    found = Load()
    waiting = iter([body_of(server, [text]) for text in texts])
    async with _session(server) as session:
        start = time.perf_counter()
        await asyncio.gather(*(_client(session, server, waiting, found) for _ in range(concurrency)))
        found.seconds = time.perf_counter() - start
    return found


async def beside_bulk(
    server: Server, queries: Sequence[str], bulk: Sequence[str], clients: int
) -> tuple[list[float], float]:
    """Queries one after the other while `clients` send `bulk` again and again.

    Returns:
        Milliseconds of each query; texts of the bulk a second.
    """
    found, texts = Load(), 0
    body = body_of(server, bulk)

    async def send_bulk(session: aiohttp.ClientSession) -> None:
        nonlocal texts
        while True:
            if await _ask(session, server, body):
                texts += len(bulk)

    async with _session(server) as session:
        senders = [asyncio.create_task(send_bulk(session)) for _ in range(clients)]
        start = time.perf_counter()
        await asyncio.sleep(1.0)  # until the machine is full
        await _client(session, server, iter([body_of(server, [query]) for query in queries]), found)
        rate = texts / (time.perf_counter() - start)
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
    return found.milliseconds, rate


def body_of(server: Server, texts: Sequence[str]) -> bytes:
    """A request's body; the texts have their prompts already."""
    return json.dumps({"input": list(texts), "model": server.model, "encoding_format": "base64"}).encode()


def _session(server: Server) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(server.url, connector=aiohttp.TCPConnector(limit=0), headers=_HEADERS)


async def _client(
    session: aiohttp.ClientSession, server: Server, waiting: Iterator[bytes], found: Load
) -> None:
    for body in waiting:
        start = time.perf_counter()
        if await _ask(session, server, body):
            found.milliseconds.append(1000 * (time.perf_counter() - start))
        else:
            found.errors += 1


async def _ask(session: aiohttp.ClientSession, server: Server, body: bytes) -> bool:
    async with session.post(server.path, data=body) as answer:
        await answer.read()
        return answer.status == 200
