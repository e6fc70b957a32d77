"""OpenTelemetry spans, where the extra `otel` is installed and an endpoint given; else nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from koe5_onnx import MissingDependencyError, __version__
from koe5_onnx.engine.queue import Job


class Tracing:
    """The spans of a request: tokenize, queue, run.

    Args:
        tracer: An OpenTelemetry tracer; None for no spans.
    """

    def __init__(self, tracer: Any = None) -> None:
        self._tracer = tracer

    def span(self, name: str) -> AbstractContextManager[Any]:
        """A span around what the `with` holds."""
        if self._tracer is None:
            return nullcontext()
        span: AbstractContextManager[Any] = self._tracer.start_as_current_span(name)
        return span

    def job(self, job: Job) -> AbstractContextManager[None]:
        """The spans queue and run, which other threads timed."""
        return nullcontext() if self._tracer is None else self._around(job)

    @contextmanager
    def _around(self, job: Job) -> Iterator[None]:
        try:
            yield
        finally:
            if job.started_s is not None:
                self._spans_of(job)

    def _spans_of(self, job: Job) -> None:
        now_s, now_ns = time.monotonic(), time.time_ns()

        def wall_ns(moment_s: float) -> int:
            return now_ns - int(1e9 * (now_s - moment_s))

        attributes = {"koe5.texts": len(job.ids), "koe5.tokens": sum(map(len, job.ids))}
        started_s = job.started_s or now_s
        for name, start_s, end_s in (("queue", job.arrived_s, started_s), ("run", started_s, now_s)):
            span = self._tracer.start_span(name, start_time=wall_ns(start_s), attributes=attributes)
            span.end(end_time=wall_ns(end_s))


def open_tracing(app: Any, endpoint: str | None) -> tuple[Any, Tracing]:
    """Send spans to `endpoint` (OTLP over HTTP), one for each request to `app`; without one, change nothing.

    Returns:
        The app to serve, and where the spans of a request go.

    Raises:
        MissingDependencyError: An endpoint is given and the extra is not installed.
    """
    if endpoint is None:
        return app, Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingDependencyError(str(error.name), "otel", "--otlp-endpoint") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "koe5-onnx"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    traced = OpenTelemetryMiddleware(
        app, tracer_provider=provider, exclude_spans=["receive", "send"], excluded_urls="health,metrics"
    )
    return traced, Tracing(provider.get_tracer("koe5_onnx", __version__))
