"""Limits on the number of open requests and on the memory of their bodies and responses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.refusals import BODY_TOO_LARGE, OVERLOADED, Refusal
from koe5_onnx.serve.settings import Settings


@dataclass
class Held:
    """Memory that one request uses."""

    bytes: int = 0


class Admission:
    """Count open requests and their bytes, and reject requests above the limits.

    Not thread-safe: use it from the event loop only.

    Args:
        settings: The limits.
        metrics: Metrics that count the open requests.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._requests = self._bytes = 0

    @contextmanager
    def admit(self) -> Iterator[Held]:
        """Count a request as open until the context ends, then release its bytes.

        Raises:
            Refusal: Too many requests are open.
        """
        if self._requests >= self._settings.max_requests:
            raise Refusal(
                OVERLOADED,
                f"{self._requests:,} requests are open: expected at most {self._settings.max_requests:,}. "
                "Try again later",
                retry_after_s=1,
            )
        held = Held()
        self._requests += 1
        self._metrics.request_began()
        try:
            yield held
        finally:
            self._requests -= 1
            self._bytes -= held.bytes
            self._metrics.request_left()

    def hold_body(self, size: int, held: Held) -> None:
        """Add bytes of a request's body.

        Raises:
            Refusal: The body is too large, or all open requests together use too many bytes.
        """
        if held.bytes + size > self._settings.max_body_bytes:
            raise self.too_large()
        self.hold(size, held)

    def hold(self, size: int, held: Held) -> None:
        """Add bytes that a request keeps in memory until it ends.

        Raises:
            Refusal: All open requests together use too many bytes.
        """
        if self._bytes + size > self._settings.max_pending_bytes:
            raise Refusal(
                OVERLOADED,
                f"the open requests use {self._bytes:,} bytes and this one needs {size:,} more: "
                f"expected at most {self._settings.max_pending_bytes:,} in total. Try again later",
                retry_after_s=1,
            )
        held.bytes += size
        self._bytes += size

    def too_large(self) -> Refusal:
        """Return the refusal of a body above the limit."""
        limit = self._settings.max_body_bytes
        return Refusal(
            BODY_TOO_LARGE, f"the body is too large: expected at most {limit:,} bytes. Send fewer texts"
        )
