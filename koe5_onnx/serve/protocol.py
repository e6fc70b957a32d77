"""uvicorn's HTTP/1.1 protocol with a size limit for headers, timeouts for slow clients, and without upgrades.

uvicorn limits neither the size of a request's headers nor the time to receive them, and never closes a
connection whose client does not read the response. It also stops reading a request that offers another
protocol. admission.py limits the bodies.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536
"""Maximum bytes of the request line and the headers, or of the trailers.
Source: uvicorn's limit with h11, https://www.uvicorn.org/settings/"""

_OFFER_OPTIONS = (b"upgrade", b"http2-settings")
_INVALID = "Invalid HTTP request received."
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Joined:
    """Transport of one response that sends the headers and the first part of the body in one system call."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self._has_begun = False

    def write(self, data: bytes | memoryview) -> None:
        """Write `data`. Delay the first write, the headers, until the second."""
        if not self._has_begun:
            self._head, self._has_begun = bytes(data), True
            return
        if self._head is not None:
            data, self._head = b"".join((self._head, data)), None
        self._transport.write(data)

    def close(self) -> None:
        """Close the connection after all data is written."""
        if self._head is not None:
            self.write(b"")
        self._transport.close()

    def is_closing(self) -> bool:
        """Return True if the connection is closing."""
        return self._transport.is_closing()


class BoundedProtocol(HttpToolsProtocol):
    """One HTTP/1.1 connection. If there are more than `max_connections`, it is closed immediately.

    `client_timeout_s` limits the time for the client to send the headers of a request, to send the rest of a
    body after an early response, and to read each part of a response.
    """

    def __init__(self, *given: Any, client_timeout_s: float, max_connections: int, **named: Any) -> None:
        super().__init__(*given, **named)
        self._client_timeout_s, self._max_connections = client_timeout_s, max_connections
        self._sending: asyncio.TimerHandle | None = None
        """Timer that runs while the server waits for data from the client."""
        self._taking: asyncio.TimerHandle | None = None
        """Timer that closes the connection if the client does not read. It starts when the write buffer is
        full, or when the last response of the connection is complete. It stops when the client has read most
        of the buffer, or the connection is lost."""
        self._bodiless_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of a new connection, or close it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            transport.abort()
            return
        # Proxies and browsers open connections in advance, so a new one may be idle as long as a used one.
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers of the connection."""
        super().connection_lost(exc)
        self._stop_sending()
        self._stop_taking()
        # If the client disconnects, uvicorn keeps the connection object until this timer ends.
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Parse data from the client, and reject invalid requests and headers above the size limit."""
        self._bodiless_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning(_INVALID)
            self.send_400_response(_INVALID)
        if self._bodiless_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()
        self._watch_sending()

    def _parse(self, data: bytes) -> None:
        """Parse data, ignoring offers to switch to another protocol, such as the h2c of Java's HttpClient.

        The parser stops after the headers of a request with an offer and would not read its body. Therefore a
        new parser reads the same headers without the offer, and then the body.
        """
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:
                if self.scope["method"] == "CONNECT":
                    raise httptools.HttpParserError("CONNECT") from None
                rest = rest[offer.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(self._head_without_offer())

    def _head_without_offer(self) -> bytes:
        version = self.scope["http_version"].encode()
        lines = [b"%s %s HTTP/%s" % (self.scope["method"].encode(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":  # older parsers do not find "close" before the options of an offer
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(option for option in options if option.lower() not in _OFFER_OPTIONS)
            if name != b"upgrade":
                lines.append(b"%s: %s" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def _should_upgrade(self) -> bool:
        """Return True, so that uvicorn does not start a request with an offer. `_parse` starts it instead."""
        return True

    def on_headers_complete(self) -> None:
        """Start the request whose headers are complete."""
        self._bodiless_bytes = 0
        before = self.cycle
        super().on_headers_complete()
        # A response to HEAD has no body to wait for, and "100 Continue" must be sent immediately.
        if self.cycle is not before and self.scope["method"] != "HEAD" and not self.expect_100_continue:
            self.cycle.transport = Joined(self.transport)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Handle a part of a body."""
        self._bodiless_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Handle the end of a request."""
        self._bodiless_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the timer for reading the response if the connection closes after it."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_taking()

    def pause_writing(self) -> None:
        """Start the timer for reading: the client reads slower than the server writes."""
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        """Stop the timer for reading: the client has read most of the buffer."""
        self._stop_taking()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if the client has not read the last response."""
        self.transport.abort()

    def _watch_sending(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # The server has to respond now. Reading the body has its own timeout.
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
