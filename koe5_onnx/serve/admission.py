"""How many requests are in work, and how many bytes their bodies and answers hold: both are bounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.refusals import BODY_TOO_LARGE, OVERLOADED, Refusal
from koe5_onnx.serve.settings import Settings


@dataclass
class Held:
    """What one request keeps in memory."""

    bytes: int = 0


class Admission:
    """Counts what is in work, and refuses what would be too much. Lives in the event loop.

    Args:
        settings: The limits.
        metrics: Told of each request.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._requests = self._bytes = 0

    @contextmanager
    def admit(self) -> Iterator[Held]:
        """Count a request, and in the end what it holds.

        Raises:
            Refusal: There are too many.
        """
        if self._requests >= self._settings.max_requests:
            raise Refusal(
                OVERLOADED,
                f"{self._requests:,} requests are in work: expected at most {self._settings.max_requests:,}",
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
        """Count bytes of a request's body.

        Raises:
            Refusal: The body is too large, or all together are.
        """
        if held.bytes + size > self._settings.max_body_bytes:
            raise self.too_large()
        self.hold(size, held)

    def hold(self, size: int, held: Held) -> None:
        """Count bytes that a request keeps in memory until it is over.

        Raises:
            Refusal: All requests together keep too much.
        """
        if self._bytes + size > self._settings.max_pending_bytes:
            raise Refusal(
                OVERLOADED,
                f"the requests in work hold {self._bytes:,} bytes, and this one needs {size:,} more: "
                f"expected at most {self._settings.max_pending_bytes:,} together; try again later",
                retry_after_s=1,
            )
        held.bytes += size
        self._bytes += size

    def too_large(self) -> Refusal:
        """What a body above the limit gets."""
        limit = self._settings.max_body_bytes
        return Refusal(BODY_TOO_LARGE, f"the body is too large: expected at most {limit:,} bytes")
