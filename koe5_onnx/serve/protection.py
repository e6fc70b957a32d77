"""Around every request: its id, its key, the size of its body, its log line, an answer whatever happens."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from koe5_onnx.serve.logs import LOGGER
from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.refusals import BACKEND, BODY_TOO_LARGE, BODY_TOO_SLOW, NO_KEY, OVERLOADED, Refusal
from koe5_onnx.serve.settings import Settings

DOCS_FILES = "/docs-files"
"""Where /docs finds its script and style: in the package, not on some CDN."""
OPEN_PATHS = frozenset({"/", "/health", "/metrics", "/docs", "/openapi.json"})
"""Served without a key: none of them shows or takes a text."""
CLIENT_GONE = 499
"""Status in log and metrics of a request whose client did not wait for the answer; as nginx counts them."""
FAILED = "the server failed on this request; its log says more under the answer's x-request-id"
NOTES = "koe5.notes"
"""Key in an ASGI scope: a dict whose entries go into the request's log line."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_QUIET_PATHS = frozenset({"/health", "/metrics"})
"""Asked every few seconds by machines: not worth a line where all is well."""


class Protection:
    """ASGI middleware, the outermost.

    Args:
        app: What is protected.
        settings: Limits and keys.
        metrics: Told of each request.
        routes: Known paths; all others are one label of the metrics.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, routes: Sequence[str]) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._routes = frozenset(routes)
        self._requests = self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other scopes pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        reply = _Reply(send, _request_id(Headers(scope=scope)))
        scope[NOTES] = {}
        try:
            await self._serve(scope, receive, reply)
        except Refusal as refusal:
            await refusal.response(scope["path"])(scope, receive, reply)
        except Exception:  # noqa: BLE001 - no request may take the server with it
            LOGGER.exception("a request failed", extra={"fields": {"request_id": reply.request_id}})
            if reply.status is None:
                await Refusal(BACKEND, FAILED).response(scope["path"])(scope, receive, reply)
        finally:
            self._ended(scope, reply, time.monotonic() - start)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self._settings.api_keys_sha256 and not is_open(scope["path"]):
            require_key(headers.get("authorization", ""), self._settings.api_keys_sha256)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        with self._admitted() as held:
            body = await self._body(headers, receive, held)
            await self._app(scope, _replayed(body, receive), send)

    @contextmanager
    def _admitted(self) -> Iterator[_Held]:
        """Count a request, and in the end what its body holds."""
        if self._requests >= self._settings.max_requests:
            raise Refusal(
                OVERLOADED,
                f"{self._requests:,} requests are in work: expected at most {self._settings.max_requests:,}",
                retry_after_s=1,
            )
        held = _Held()
        self._requests += 1
        self._metrics.request_began()
        try:
            yield held
        finally:
            self._requests -= 1
            self._bytes -= held.bytes
            self._metrics.request_left()

    async def _body(self, headers: Headers, receive: Receive, held: _Held) -> Message:
        """The whole body, within its limits, as one message; a disconnect where the client went away."""
        limit = self._settings.max_body_bytes
        declared = headers.get("content-length", "")
        if declared.isdecimal() and len(declared) < 20 and int(declared) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                return await self._read(receive, held)
        except TimeoutError:
            raise Refusal(
                BODY_TOO_SLOW, f"the body did not arrive within {self._settings.body_timeout_s:g} s"
            ) from None

    async def _read(self, receive: Receive, held: _Held) -> Message:
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return message
            parts.append(message.get("body", b""))
            self._hold(len(parts[-1]), held)
            if not message.get("more_body", False):
                return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    def _hold(self, size: int, held: _Held) -> None:
        """Count bytes of a body, of one request and of all together."""
        held.bytes += size
        self._bytes += size
        if held.bytes > self._settings.max_body_bytes:
            raise _too_large(self._settings.max_body_bytes)
        if self._bytes > self._settings.max_pending_bytes:
            raise Refusal(
                OVERLOADED,
                f"the bodies of all requests in work hold {self._bytes:,} bytes: expected at most "
                f"{self._settings.max_pending_bytes:,}",
                retry_after_s=1,
            )

    def _ended(self, scope: Scope, reply: _Reply, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._routes else "other"
        status = reply.status or CLIENT_GONE
        self._metrics.request_ended(path, status, seconds)
        if path in _QUIET_PATHS and status < 400:
            return
        fields = {
            "request_id": reply.request_id,
            "method": scope["method"],
            "path": path,
            "status": status,
            "ms": round(1000 * seconds, 1),
            **scope[NOTES],
        }
        LOGGER.info("request", extra={"fields": fields})


@dataclass
class _Held:
    """What one request keeps in memory."""

    bytes: int = 0


class _Reply:
    """`send` with the request's id in the headers; remembers the status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.status: int | None = None
        self.request_id = request_id
        self._send = send

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        await self._send(message)


def is_open(path: str) -> bool:
    """Whether a path is served without a key."""
    return path in OPEN_PATHS or path.startswith(f"{DOCS_FILES}/")


def require_key(authorization: str, keys_sha256: Sequence[str]) -> None:
    """Check a header "Bearer KEY" in a time that depends on no key.

    Raises:
        Refusal: It holds none of the keys.
    """
    scheme, _, key = authorization.partition(" ")
    digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()
    # All are compared, so that the time does not say which one was near.
    matches = [hmac.compare_digest(digest, known) for known in keys_sha256]
    if scheme.lower() != "bearer" or not any(matches):
        raise Refusal(NO_KEY, "no valid API key: expected the header 'Authorization: Bearer KEY'")


def _replayed(first: Message, receive: Receive) -> Receive:
    """`receive` that gives `first` once more, then what comes."""
    waiting = [first]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _too_large(limit: int) -> Refusal:
    return Refusal(BODY_TOO_LARGE, f"the body is too large: expected at most {limit:,} bytes")


def _request_id(headers: Headers) -> str:
    """The client's own, where it is harmless in a log; else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
