"""Send responses: add the request ID, count the bytes of large responses and send them in parts."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope, Send

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_PIECE_BYTES = 65_536
"""Size of a part, equal to asyncio's limit of the write buffer. Above the limit, uvicorn waits for the client
before it writes the next part."""


class Reply:
    """ASGI `send` of one request."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.status: int | None = None
        """Status of the response; None before the response starts."""
        self.request_id = _request_id(scope)
        self.hold: Callable[[int], None] | None = None
        """Counts the bytes of a large response. Raises Refusal if all open requests use too many bytes."""
        self._send = send

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Send a message to the client.

        Raises:
            Refusal: The open requests together use too many bytes, so this response cannot begin.
        """
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        body = memoryview(message.get("body", b""))
        while len(body) > _PIECE_BYTES:
            await self._send({"type": message["type"], "body": body[:_PIECE_BYTES], "more_body": True})
            body = body[_PIECE_BYTES:]
        await self._send({**message, "body": body})

    async def _start(self, message: MutableMapping[str, Any]) -> None:
        headers = [*message.get("headers", ())]
        size = next((int(value) for name, value in headers if name == b"content-length"), 0)
        if self.hold is not None and size > _PIECE_BYTES:
            self.hold(size)
        self.status = message["status"]
        headers.append((b"x-request-id", self.request_id.encode("ascii")))
        await self._send({**message, "headers": headers})


def _request_id(scope: Scope) -> str:
    """Return the client's request ID if it is safe to log, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    if _REQUEST_ID.fullmatch(given):
        return given
    # A request ID is not a secret, so random is enough and avoids the system call of os.urandom.
    return f"{random.getrandbits(128):032x}"
