"""OpenTelemetry spans. Requires the extra `otel` and an endpoint; without an endpoint there are no spans."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from koe5_onnx import MissingDependencyError, __version__
from koe5_onnx.engine.queue import Job


class Tracing:
    """Spans of a request: tokenize, queue, run. There are none without an OpenTelemetry tracer."""

    def __init__(self, tracer: Any = None) -> None:
        self._tracer = tracer

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Return a context manager that records a span."""
        if self._tracer is None:
            return nullcontext()
        span: AbstractContextManager[Any] = self._tracer.start_as_current_span(name)
        return span

    def job(self, job: Job) -> None:
        """Record the spans "queue" and "run" of a job, whose start other threads timed. "run" ends now."""
        if self._tracer is None or job.started_s is None:
            return
        now_s, now_ns = time.monotonic(), time.time_ns()

        def wall_ns(moment_s: float) -> int:
            return now_ns - int(1e9 * (now_s - moment_s))

        attributes = {"koe5.texts": len(job.ids), "koe5.tokens": sum(map(len, job.ids))}
        times = (("queue", job.arrived_s, job.started_s), ("run", job.started_s, now_s))
        for name, start_s, end_s in times:
            span = self._tracer.start_span(name, start_time=wall_ns(start_s), attributes=attributes)
            span.end(end_time=wall_ns(end_s))


def open_tracing(app: Any, endpoint: str | None) -> tuple[Any, Tracing]:
    """Send a span for each request to `endpoint` (OTLP over HTTP), except for /health and /metrics.

    None leaves `app` unchanged.

    Returns:
        The app to serve and the object that records the other spans of a request.

    Raises:
        MissingDependencyError: An endpoint is given and the extra `otel` is not installed.
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
