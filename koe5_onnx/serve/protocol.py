"""HTTP/1.1 on one connection: uvicorn's protocol, with bounds on what its client may send, delay and leave.

uvicorn bounds neither the head of a request nor the time that it may take, and closes no connection whose
client does not read. What a request holds once its head is there is admission.py's.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536
"""Bytes in a row that are no body: request line, headers, trailers.
Source: what uvicorn allows with h11, https://www.uvicorn.org/settings/"""

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Joined:
    """What one answer writes: its head goes out with what follows, in one call of the system and one packet.

    Args:
        transport: Of the connection.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self._has_begun = False

    def write(self, data: bytes | memoryview) -> None:
        """Write; but keep what comes first."""
        if not self._has_begun:
            self._head, self._has_begun = bytes(data), True
            return
        if self._head is not None:
            data, self._head = b"".join((self._head, data)), None
        self._transport.write(data)

    def close(self) -> None:
        """Close the connection once all is written."""
        if self._head is not None:
            self.write(b"")
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection ends."""
        return self._transport.is_closing()


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        given: What uvicorn gives to a protocol.
        client_timeout_s: For the head of a request, for the rest of a body that was answered already, and for
            each piece of an answer to be taken.
        max_connections: More than that are closed at once.
        named: What uvicorn gives to a protocol.
    """

    def __init__(self, *given: Any, client_timeout_s: float, max_connections: int, **named: Any) -> None:
        super().__init__(*given, **named)
        self._client_timeout_s, self._max_connections = client_timeout_s, max_connections
        self._sending: asyncio.TimerHandle | None = None
        """Runs while the client has something to send."""
        self._taking: asyncio.TimerHandle | None = None
        """Runs while the client has something to take."""
        self._bodiless_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connects."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            transport.abort()
            return
        self._watch_sending()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        self._stop_sending()
        self._stop_taking()
        # Where the client broke it off, uvicorn lets this run out, and keeps the whole connection until then.
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """The client sends something."""
        self._bodiless_bytes += len(data)
        super().data_received(data)
        if self._bodiless_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()
        self._watch_sending()

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._bodiless_bytes = 0
        before = self.cycle
        super().on_headers_complete()
        # Nothing would follow the head that answers HEAD; and "100 Continue" must not wait.
        if self.cycle is not before and self.scope["method"] != "HEAD" and not self.expect_100_continue:
            self.cycle.transport = Joined(self.transport)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Part of a body."""
        self._bodiless_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._bodiless_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is written, though perhaps not taken."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_taking()

    def pause_writing(self) -> None:
        """The client takes less than is written."""
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        """It has taken most of it."""
        self._stop_taking()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while: close, even if the last answer was never taken."""
        self.transport.abort()

    def _watch_sending(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # It is our turn; the body has a timeout of its own.
            self._stop_sending()
        elif self._sending is None and not self.transport.is_closing():
            self._sending = self.loop.call_later(self._client_timeout_s, self.transport.abort)

    def _watch_taking(self) -> None:
        if self._taking is None and self in self.connections:
            self._taking = self.loop.call_later(self._client_timeout_s, self.transport.abort)

    def _refuse_head(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        else:
            self.transport.abort()

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _stop_taking(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None
