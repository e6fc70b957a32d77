"""Prometheus metrics: time per step, batches, padding, truncation, execution provider."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from koe5_onnx import Embedder
from koe5_onnx.engine.queue import QueuedBatch
from koe5_onnx.engine.runner import Observer
from koe5_onnx.serve.logs import LOGGER

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Variable with the folder in which the worker processes share their metrics.
Source: https://prometheus.github.io/client_python/multiprocess/"""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)

_NOTICED = {
    "truncated": ("koe5_truncated_inputs", "Texts that were truncated"),
    "averaged": ("koe5_averaged_inputs", "Texts whose embedding is an average over parts"),
    "composed": ("koe5_composed_inputs", "Texts in decomposed Unicode that were normalized to NFC"),
    "doubled_prompts": ("koe5_doubled_prompt_inputs", "Texts that had a prompt before one was added"),
    "cached": ("koe5_cached_inputs", "Texts whose embeddings were in the cache"),
    "repeated": ("koe5_repeated_inputs", "Texts equal to another one of the same request"),
}
"""Counts in the log line of a request, and their counters."""


class Metrics(Observer):
    """Metrics of one server process.

    As the observer of the runner, it also logs failed batches and rejects embeddings that are not finite.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        histogram = partial(Histogram, registry=registry)
        seconds = partial(histogram, buckets=_SECONDS)
        counter = partial(Counter, registry=registry)
        live = partial(Gauge, multiprocess_mode="livesum", registry=registry)
        words = "Seconds from the headers of a request to the end of its response"
        self._request = seconds("koe5_request_seconds", words, ["route", "status"])
        self._queue = seconds(
            "koe5_queue_seconds", "Seconds that the first text of a request, or of a piece of it, is queued"
        )
        self.tokenize = seconds("koe5_tokenize_seconds", "Seconds to tokenize a request")
        self._run = seconds("koe5_run_seconds", "Seconds to run a batch")
        self._batch_tokens = histogram(
            "koe5_batch_tokens", "Tokens per batch, without padding", buckets=_TOKENS
        )
        self._batch_texts = histogram("koe5_batch_texts", "Texts per batch", buckets=_TEXTS)
        self._padding = histogram("koe5_padding_share", "Share of a batch that is padding", buckets=_SHARES)
        self._inputs = counter("koe5_inputs", "Texts of answered requests, by prompt name", ["prompt_name"])
        self._tokens = counter("koe5_tokens", "Tokens of answered requests, without those cut by truncation")
        self._noticed = {name: counter(*metric) for name, metric in _NOTICED.items()}
        self.ignored = counter("koe5_ignored_fields", "Fields of requests that had no effect")
        self.gone = counter("koe5_clients_gone", "Requests whose client disconnected early")
        self._waiting = live("koe5_queue_tokens", "Tokens in the queue")
        self.open_requests = live("koe5_requests_in_work", "Open requests")
        words = "Processes by execution provider, graph, precision and threads"
        self._engine = live("koe5_engine", words, ["provider", "graph", "precision", "threads"])
        self.waiting_tokens: Callable[[], int] = lambda: 0
        """Returns the number of queued tokens."""
        # prometheus_client checks the labels and takes a lock on every call of labels().
        self.request_of = cache(lambda route, status: self._request.labels(route, str(status)))
        self._inputs_of = cache(self._inputs.labels)

    def opened(self, embedder: Embedder) -> None:
        """Set the metric koe5_engine."""
        session, precision = embedder.session, embedder.artifact.manifest.precision
        graph = "packed" if session.graph.is_packed else "padded"
        self._engine.labels(session.providers[0], graph, precision, str(session.threads)).set(1)

    def batch_ran(self, batch: QueuedBatch, seconds: float) -> None:
        """Record a batch that ran in `seconds`."""
        self._run.observe(seconds)
        self._batch_tokens.observe(batch.tokens)
        self._batch_texts.observe(len(batch.rows))
        self._padding.observe(1 - batch.tokens / batch.slots)
        self._waiting.set(self.waiting_tokens())

    def job_started(self, waited_s: float) -> None:
        """Record the time that the first row of a job waited in the queue."""
        self._queue.observe(waited_s)

    def batch_failed(self, error: BaseException) -> None:
        """Log the error of a batch."""
        LOGGER.error("a batch failed: %s", error, exc_info=error)

    def faults_of(self, embeddings: npt.NDArray[np.float32]) -> Sequence[BaseException | None]:
        """Return an error for each row that is not finite, which JSON cannot represent."""
        fault = FloatingPointError("an embedding is not finite. Run koe5-onnx verify on the artifact")
        are_finite = np.asarray(np.isfinite(embeddings).all(axis=1))
        return [None if is_finite else fault for is_finite in are_finite.tolist()]

    def answered(self, notes: Mapping[str, Any], tokens: int) -> None:
        """Record an answered request with this number of tokens, and with `notes` in its log line."""
        self._inputs_of(notes["prompt_name"] or "none").inc(notes["inputs"])
        self._tokens.inc(tokens)
        for name, counter in self._noticed.items():
            if notes[name]:
                counter.inc(notes[name])

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        self._waiting.set(self.waiting_tokens())
        if MULTIPROCESS_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        _forget_dead_workers(Path(os.environ[MULTIPROCESS_VARIABLE]))
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


def _forget_dead_workers(folder: Path) -> None:
    """Remove ended workers from the gauges. Their counters and histograms remain."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
