"""Limits on the number of open requests and on the memory of their bodies and responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.refusals import Reason, Refusal
from koe5_onnx.serve.settings import Settings


class Admission:
    """Count open requests and their bytes, and reject requests above the limits.

    Not thread-safe: use it from the event loop only.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._requests = self._bytes = 0

    @contextmanager
    def admit(self) -> Iterator[Callable[[int], None]]:
        """Count a request as open until the context ends.

        Yields:
            Function that counts bytes of the request until then. It raises Refusal if all open requests
            together use too many bytes.

        Raises:
            Refusal: Too many requests are open.
        """
        if self._requests >= (most := self._settings.max_requests):
            message = f"{self._requests:,} requests are open: expected at most {most:,}. Try again later"
            raise Refusal(Reason.OVERLOADED, message, retry_after_s=1)
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._bytes + size > (most := self._settings.max_pending_bytes):
                message = (
                    f"the open requests use {self._bytes:,} bytes and this one needs {size:,} more: "
                    f"expected at most {most:,} in total. Try again later"
                )
                raise Refusal(Reason.OVERLOADED, message, retry_after_s=1)
            held += size
            self._bytes += size

        self._requests += 1
        try:
            with self._metrics.open_requests.track_inprogress():
                yield hold
        finally:
            self._requests -= 1
            self._bytes -= held
