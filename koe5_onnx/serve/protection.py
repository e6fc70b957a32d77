"""ASGI middleware for every request: API key, limits of the body, log line, error response."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Container, Iterator, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from koe5_onnx.serve.admission import Admission
from koe5_onnx.serve.connection import ClientGoneError
from koe5_onnx.serve.logs import LOGGER
from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.refusals import Reason, Refusal
from koe5_onnx.serve.response import Reply
from koe5_onnx.serve.routing import BODY, NOTES
from koe5_onnx.serve.settings import Settings

_OPEN_PATHS = re.compile("/(|health|metrics|docs|openapi[.]json|docs-files/.*)")
"""Paths of which GET requires no API key, because the responses contain no texts of clients."""
_OPENAI_PATHS = re.compile("^(/v1)*(?=/(embeddings$|models(/|$)))")
CLIENT_GONE = 499
"""Status in logs and metrics of a request whose client disconnected early; nginx uses the same number."""
FAILED = "the server failed on this request. Search its log for the x-request-id of this response"

_QUIET_PATHS = frozenset({"/health", "/metrics"})
"""Paths that monitoring polls every few seconds. Only their errors are logged, and those of OPTIONS, which
HAProxy uses for its checks by default."""


class Protection:
    """ASGI middleware. In logs and metrics, all paths that are not in `paths` are called "other"."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, paths: Container[str]) -> None:
        self._app, self._settings, self._metrics, self._paths = app, settings, metrics, paths
        self._admission = Admission(settings, metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; pass all other scopes to the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        scope = {**scope, "path": canonical(scope["path"], self._settings.root_path), NOTES: {}}
        reply = Reply(scope, send)
        try:
            await self._serve(scope, receive, reply)
        except Refusal as refusal:
            # Without the message, which can quote the request.
            scope[NOTES] |= {
                "rejected": refusal.code,
                "param": refusal.param,
                "user_agent": Headers(scope=scope).get("user-agent", "")[:100],
            }
            await refusal.response(scope["path"])(scope, receive, reply)
        except ClientGoneError:
            self._metrics.gone.inc()
        except Exception:  # noqa: BLE001 - an error in one request must not stop the server
            LOGGER.exception("a request failed", extra={"fields": {"request_id": reply.request_id}})
            if reply.status is None:
                await Refusal(Reason.BACKEND, FAILED).response(scope["path"])(scope, receive, reply)
        finally:
            self._ended(scope, reply, time.monotonic() - start)

    async def _serve(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        headers = Headers(scope=scope)
        method = scope["method"]
        is_open = method == "OPTIONS" or (method in ("GET", "HEAD") and _OPEN_PATHS.fullmatch(scope["path"]))
        if self._settings.api_keys_sha256 and not is_open:
            require_key(headers, self._settings.api_keys_sha256)
        if method not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, reply)
            return
        _require_plain(headers)
        if (declared := headers.get("content-length", "")).isdecimal() and len(declared) < 20:
            self._require_size(int(declared))
        with self._admission.admit() as hold:
            scope[BODY] = await self._body(receive, hold)
            reply.hold = hold
            await self._app(scope, receive, reply)

    async def _body(self, receive: Receive, hold: Callable[[int], None]) -> bytes:
        limit_s = self._settings.body_timeout_s
        # One buffer, because a body that arrives byte by byte must not create one object per byte.
        body = bytearray()
        try:
            async with asyncio.timeout(limit_s):
                while (message := await receive())["type"] != "http.disconnect":
                    part: bytes = message.get("body", b"")
                    self._require_size(len(body) + len(part))
                    hold(len(part))
                    if not message.get("more_body", False):
                        return bytes(body) + part if body else part
                    body += part
        except TimeoutError:
            found = f"the body did not arrive within {limit_s:g} s"
            raise Refusal(Reason.BODY_TOO_SLOW, f"{found}. Send fewer texts") from None
        raise ClientGoneError

    def _require_size(self, size: int) -> None:
        if size > (limit := self._settings.max_body_bytes):
            message = f"the body is too large: expected at most {limit:,} bytes. Send fewer texts"
            raise Refusal(Reason.BODY_TOO_LARGE, message)

    def _ended(self, scope: Scope, reply: Reply, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        status = reply.status or CLIENT_GONE
        self._metrics.request_of(path, status).observe(seconds)
        is_quiet = path in _QUIET_PATHS or scope["method"] == "OPTIONS"
        if (is_quiet and status < 400) or not LOGGER.isEnabledFor(logging.INFO):
            return
        fields = {
            "request_id": reply.request_id,
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "path": path,
            "status": status,
            "ms": round(1000 * seconds, 1),
            **scope[NOTES],
        }
        LOGGER.info("request", extra={"fields": fields})


def canonical(path: str, root_path: str = "") -> str:
    """Return a path without the proxy's prefix `root_path`, repeated slashes and a trailing slash.

    Clients produce such paths from a base URL that ends with a slash. The server does not redirect them,
    because some clients omit the API key or the body after a redirect. A path of OpenAI's API begins with one
    "/v1" in the result: Azure's paths have none, and some clients add a second one to their base URL.
    """
    path = re.sub("/{2,}", "/", path)
    if root_path and f"{path}/".startswith(f"{root_path}/"):
        path = path.removeprefix(root_path)
    return _OPENAI_PATHS.sub("/v1", path.rstrip("/") or "/")


def require_key(headers: Headers, keys_sha256: Sequence[str]) -> None:
    """Check the API key of a request in constant time.

    Raises:
        Refusal: The headers contain none of the keys.
    """
    digests = [hashlib.sha256(key.encode("latin-1")).hexdigest() for key in _keys_of(headers)]
    # Compare with every key, so that the time does not reveal which one matched.
    matches = [hmac.compare_digest(digest, known) for digest in digests for known in keys_sha256]
    if not any(matches):
        expected = "the header 'Authorization: Bearer KEY', 'x-api-key: KEY' or 'api-key: KEY'"
        raise Refusal(Reason.NO_KEY, f"no valid API key: expected {expected}")


def _keys_of(headers: Headers) -> Iterator[str]:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield key.strip()
    yield from filter(None, (headers.get(name, "").strip() for name in ("x-api-key", "api-key")))


def _require_plain(headers: Headers) -> None:
    found = headers.get("content-encoding") or "identity"
    # Some clients send a character set here, which other servers ignore.
    if found.lower() not in ("identity", "utf-8"):
        message = f"content-encoding is {found[:40]!r}: send a body that is not compressed"
        raise Refusal(Reason.ENCODED, message)
