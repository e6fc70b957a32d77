"""Around every request: its key, the size of its body, its log line, an answer whatever happens."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Sequence
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from koe5_onnx.serve.admission import Admission, Held
from koe5_onnx.serve.fast_path import replayed
from koe5_onnx.serve.logs import LOGGER
from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.refusals import BACKEND, BODY_TOO_SLOW, ENCODED, NO_KEY, Refusal
from koe5_onnx.serve.response import Reply, header_of
from koe5_onnx.serve.settings import Settings

DOCS_FILES = "/docs-files"
"""Where /docs finds its script and style: in the package, not on some CDN."""
OPEN_PATHS = frozenset({"/", "/health", "/metrics", "/docs", "/openapi.json"})
"""Got without a key: none of them shows a text."""
CLIENT_GONE = 499
"""Status in log and metrics of a request whose client did not wait for the answer; as nginx counts them."""
FAILED = "the server failed on this request; its log says more under the answer's x-request-id"
NOTES = "koe5.notes"
"""Key in an ASGI scope: a dict whose entries go into the request's log line."""

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
        self._admission = Admission(settings, metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other scopes pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        reply = Reply(scope, send)
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

    async def _serve(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        if self._settings.api_keys_sha256 and not is_open(scope["method"], scope["path"]):
            require_key(header_of(scope, b"authorization"), self._settings.api_keys_sha256)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, reply)
            return
        _require_plain(scope)
        with self._admission.admit() as held:
            body = await self._body(scope, receive, held)
            reply.hold = partial(self._admission.hold, held=held)
            await self._app(scope, replayed(body, receive), reply)

    async def _body(self, scope: Scope, receive: Receive, held: Held) -> Message:
        """The whole body, within its limits, as one message; a disconnect where the client went away."""
        declared = header_of(scope, b"content-length")
        if declared.isdecimal() and len(declared) < 20 and int(declared) > self._settings.max_body_bytes:
            raise self._admission.too_large()
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                return await self._read(receive, held)
        except TimeoutError:
            raise Refusal(
                BODY_TOO_SLOW, f"the body did not arrive within {self._settings.body_timeout_s:g} s"
            ) from None

    async def _read(self, receive: Receive, held: Held) -> Message:
        # One buffer: a body that comes byte by byte must not cost an object a byte.
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return message
            part = message.get("body", b"")
            self._admission.hold_body(len(part), held)
            if not message.get("more_body", False):
                whole = bytes(body) + part if body else part
                return {"type": "http.request", "body": whole, "more_body": False}
            body += part

    def _ended(self, scope: Scope, reply: Reply, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._routes else "other"
        status = reply.status or CLIENT_GONE
        self._metrics.request_ended(path, status, seconds)
        if (path in _QUIET_PATHS and status < 400) or not LOGGER.isEnabledFor(logging.INFO):
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


def is_open(method: str, path: str) -> bool:
    """Whether something is served without a key."""
    return method in ("GET", "HEAD") and (path in OPEN_PATHS or path.startswith(f"{DOCS_FILES}/"))


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


def _require_plain(scope: Scope) -> None:
    found = header_of(scope, b"content-encoding") or "identity"
    if found.lower() != "identity":
        raise Refusal(ENCODED, f"content-encoding is {found[:40]!r}: expected a body that is not compressed")
