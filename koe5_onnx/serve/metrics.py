"""What Prometheus reads: times of each step, batches, padding, truncation, the provider that runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from koe5_onnx import Embedder, Tokens
from koe5_onnx.engine.queue import QueuedBatch
from koe5_onnx.engine.runner import Observer
from koe5_onnx.serve.logs import LOGGER

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where worker processes share their numbers.
Source: https://prometheus.github.io/client_python/multiprocess/"""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


class Metrics(Observer):
    """The metrics of one server process; as a runner's observer it also logs and refuses bad embeddings."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._request = Histogram(
            "koe5_request_seconds", "From the first byte to the answer", ["route", "status"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._queue = Histogram(
            "koe5_queue_seconds", "Until a request's first text runs", buckets=_SECONDS, registry=registry
        )
        self._tokenize = Histogram(
            "koe5_tokenize_seconds", "Tokenizing a request", buckets=_SECONDS, registry=registry
        )
        self._run = Histogram("koe5_run_seconds", "One batch", buckets=_SECONDS, registry=registry)
        self._batch_tokens = Histogram(
            "koe5_batch_tokens", "Tokens of a batch, without padding", buckets=_TOKENS, registry=registry
        )
        self._batch_texts = Histogram(
            "koe5_batch_texts", "Texts of a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )
        self._padding = Histogram(
            "koe5_padding_share", "Share of a batch that is padding", buckets=_SHARES, registry=registry
        )
        self._inputs = Counter("koe5_inputs", "Texts answered, by prompt", ["prompt_name"], registry=registry)
        self._tokens = Counter("koe5_tokens", "Tokens answered", registry=registry)
        self._truncated = Counter("koe5_truncated_inputs", "Texts that were cut", registry=registry)
        self._composed = Counter(
            "koe5_composed_inputs", "Texts in decomposed Unicode, which were composed", registry=registry
        )
        self._gone = Counter(
            "koe5_clients_gone", "Requests whose client went away before the answer", registry=registry
        )
        self._waiting = Gauge(
            "koe5_queue_tokens", "Tokens that wait", multiprocess_mode="livesum", registry=registry
        )
        self._in_work = Gauge(
            "koe5_requests_in_work", "Requests that are not answered yet", multiprocess_mode="livesum",
            registry=registry,
        )  # fmt: skip
        self._engine = Gauge(
            "koe5_engine", "Processes, with what really runs in them",
            ["provider", "graph", "precision", "threads"],
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self._waiting_tokens: Callable[[], int] = lambda: 0
        # The library checks the labels and takes a lock each time.
        self._request_of = cache(lambda route, status: self._request.labels(route, str(status)))
        self._inputs_of = cache(self._inputs.labels)

    def opened(self, embedder: Embedder) -> None:
        """Say what runs."""
        session = embedder.session
        self._engine.labels(
            session.providers[0],
            "packed" if session.graph.is_packed else "padded",
            embedder.artifact.manifest.precision,
            str(session.threads),
        ).set(1)

    def watch(self, waiting_tokens: Callable[[], int]) -> None:
        """Where to read how much waits."""
        self._waiting_tokens = waiting_tokens

    def batch_ran(self, batch: QueuedBatch, seconds: float) -> None:
        """A batch came back."""
        self._run.observe(seconds)
        self._batch_tokens.observe(batch.tokens)
        self._batch_texts.observe(len(batch.rows))
        self._padding.observe(1 - batch.tokens / batch.slots)
        self._waiting.set(self._waiting_tokens())

    def job_started(self, waited_s: float) -> None:
        """The first row of a request left the queue."""
        self._queue.observe(waited_s)

    def batch_failed(self, error: BaseException) -> None:
        """Log it."""
        LOGGER.error("a batch failed: %s", error, exc_info=error)

    def faults_of(self, embeddings: npt.NDArray[np.float32]) -> Sequence[BaseException | None]:
        """Reject rows that are not finite, which JSON cannot represent."""
        fault = FloatingPointError("an embedding is not finite: run koe5-onnx verify on the artifact")
        are_finite = np.asarray(np.isfinite(embeddings).all(axis=1))
        return [None if is_finite else fault for is_finite in are_finite.tolist()]

    def tokenized(self, seconds: float) -> None:
        """A request's texts have become ids."""
        self._tokenize.observe(seconds)

    def answered(self, tokens: Tokens, prompt_name: str | None, truncated: int) -> None:
        """A request has its embeddings."""
        self._inputs_of(prompt_name or "none").inc(len(tokens.ids))
        self._tokens.inc(sum(map(len, tokens.ids)))
        if truncated:
            self._truncated.inc(truncated)
        if composed := sum(tokens.composed.tolist()):
            self._composed.inc(composed)

    def client_gone(self) -> None:
        """A client did not wait."""
        self._gone.inc()

    def request_began(self) -> None:
        """A request with a body is in work."""
        self._in_work.inc()

    def request_left(self) -> None:
        """It is not any more."""
        self._in_work.dec()

    def request_ended(self, route: str, status: int, seconds: float) -> None:
        """A request has its answer, whatever it is."""
        self._request_of(route, status).observe(seconds)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        self._waiting.set(self._waiting_tokens())
        if MULTIPROCESS_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        _forget_dead_workers(Path(os.environ[MULTIPROCESS_VARIABLE]))
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


def _forget_dead_workers(folder: Path) -> None:
    """Let no gauge count a worker that is gone; its counters and histograms stay."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
