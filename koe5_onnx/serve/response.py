"""The way back to the client: the request's id in the headers, large answers piece by piece and counted."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.types import Scope, Send

from koe5_onnx.serve.refusals import Refusal

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_PIECE_BYTES = 65_536
"""As much as uvicorn writes ahead of a client: with pieces of that size it waits for one that reads slowly,
instead of keeping the whole answer for it."""


class Reply:
    """An ASGI `send` for one request.

    Args:
        scope: Of the request.
        send: The server's own.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self.status: int | None = None
        """What the client was told; None while it was not."""
        self.request_id = _request_id(scope)
        self.hold: Callable[[int], None] | None = None
        """Counts the bytes of a large answer; refuses it where all answers together are too large."""
        self._path, self._send = scope["path"], send
        self._is_refused = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Send a message on its way."""
        if self._is_refused:
            return
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body":
            await self._send_body(message)
        else:
            await self._send(message)

    async def _start(self, message: MutableMapping[str, Any]) -> None:
        headers = [*message.get("headers", ())]
        size = next((int(value) for name, value in headers if name == b"content-length"), 0)
        if self.hold is not None and size > _PIECE_BYTES:
            try:
                self.hold(size)
            except Refusal as refusal:
                await self._refuse(refusal)
                return
        self.status = message["status"]
        headers.append((b"x-request-id", self.request_id.encode("ascii")))
        await self._send({**message, "headers": headers})

    async def _refuse(self, refusal: Refusal) -> None:
        answer = refusal.response(self._path)
        await self._start(
            {"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers}
        )
        await self._send({"type": "http.response.body", "body": answer.body})
        self._is_refused = True

    async def _send_body(self, message: MutableMapping[str, Any]) -> None:
        if len(message.get("body", b"")) <= _PIECE_BYTES:
            await self._send(message)
            return
        body = memoryview(message["body"])
        more = message.get("more_body", False)
        while len(body) > _PIECE_BYTES:
            await self._send({"type": "http.response.body", "body": body[:_PIECE_BYTES], "more_body": True})
            body = body[_PIECE_BYTES:]
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def header_of(scope: Scope, name: bytes) -> str:
    """The first header of that name, which is in lower case; empty where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return ""


def _request_id(scope: Scope) -> str:
    """The client's own, where it is harmless in a log; else a new one."""
    given = header_of(scope, b"x-request-id")
    if _REQUEST_ID.fullmatch(given):
        return given
    # Not from the kernel, which would cost a call: it names a request and protects nothing.
    return f"{random.getrandbits(128):032x}"
