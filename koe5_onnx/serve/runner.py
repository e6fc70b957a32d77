"""Threads that take batches from the queue and run them, all over one Embedder.

As many batches run at once as `parallel_batches` says. One more may run beside them while all of those are
long and the extra one is short: the cores are shared for a moment, and a query need not wait for a page to
end. ONNX Runtime runs several batches of one session at a time without a second copy of the weights.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

import numpy as np
import numpy.typing as npt

from koe5_onnx import Embedder, Tokens
from koe5_onnx.serve.logs import LOGGER
from koe5_onnx.serve.queue import Batch, Job, Queue
from koe5_onnx.serve.refusals import OVERLOADED, STOPPING, Refusal

_SMOOTHING = 0.2
"""Weight of the newest batch in the speed that Retry-After is reckoned from."""


class RunnerMetrics(Protocol):
    """What a runner reports."""

    def batch_ran(self, batch: Batch, seconds: float) -> None:
        """A batch came back."""

    def job_started(self, waited_s: float) -> None:
        """The first row of a job left the queue."""


class Runner:
    """Runs what is submitted.

    Args:
        embedder: Opened with one worker; its session is used from all threads.
        parallel_batches: Batches at the same time.
        max_queue_tokens: More than that is refused.
        max_wait_s: How long a batch that is not full waits for more.
        metrics: Told what happens.
    """

    def __init__(
        self,
        embedder: Embedder,
        parallel_batches: int,
        max_queue_tokens: int,
        max_wait_s: float,
        metrics: RunnerMetrics,
    ) -> None:
        self.tokens_per_s = 0.0
        """Speed of late, 0 before the first batch."""
        self.failure: BaseException | None = None
        """Why the last batch failed; None where it did not."""
        self._embedder, self._metrics = embedder, metrics
        self._max_queue_tokens, self._max_wait_s = max_queue_tokens, max_wait_s
        self._queue = Queue(
            embedder.max_batch_tokens,
            embedder.padded_lengths,
            is_packed=embedder.session.graph.is_packed,
        )
        self._permits = parallel_batches
        self._running: list[Batch] = []
        self._changed = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"koe5-run-{number}", daemon=True)
            for number in range(parallel_batches + 1)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting_tokens(self) -> int:
        """Tokens that have not begun to run."""
        return self._queue.tokens

    def submit(self, job: Job) -> None:
        """Let a job run; `job.done` tells when.

        Raises:
            Refusal: The queue is full, or the server stops.
        """
        tokens = sum(map(len, job.ids))
        with self._changed:
            if self._closing:
                raise Refusal(STOPPING, "the server stops: try another one", retry_after_s=1)
            if self._queue.tokens + tokens > self._max_queue_tokens:
                raise Refusal(
                    OVERLOADED,
                    f"{self._queue.tokens:,} tokens wait already: expected at most {self._max_queue_tokens:,}"
                    ", this request's among them; try again later",
                    retry_after_s=self._drain_s(),
                )
            self._queue.add(job)
            self._wake_others()

    def give_up(self, job: Job) -> None:
        """Nobody waits for this job any more."""
        with self._changed:
            if not job.ended:
                self._queue.give_up(job)

    def close(self) -> None:
        """Run what was accepted, then end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _drain_s(self) -> float:
        """Until half of the queue is done."""
        return min(60.0, self._queue.tokens / 2 / self.tokens_per_s) if self.tokens_per_s else 1.0

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._run(batch)
            finally:
                # Nobody is woken: this thread takes what may run next.
                with self._changed:
                    self._running.remove(batch)

    def _next(self) -> Batch | None:
        """The next batch to run, once there is one; None where the runner is closed and the queue empty."""
        with self._changed:
            while True:
                batch, ready_in_s = self._take()
                if batch is not None:
                    self._running.append(batch)
                    # A short batch may be allowed beside this one.
                    self._wake_others()
                    return batch
                if self._closing and not self._queue.tokens:
                    self._changed.notify_all()
                    return None
                self._changed.wait(ready_in_s)

    def _wake_others(self) -> None:
        """Wake threads where one more batch may run; else they would only look and sleep on."""
        if self._may_begin():
            self._changed.notify_all()

    def _may_begin(self) -> bool:
        """Whether one more batch may run, if it is a fitting one."""
        running = len(self._running)
        return running < self._permits or (
            running == self._permits and not any(one.is_short for one in self._running)
        )

    def _take(self) -> tuple[Batch | None, float | None]:
        """A batch that may run now, else the seconds until one may (None: when something changes)."""
        if not self._may_begin():
            return None, None
        beside = len(self._running) == self._permits
        if self._max_wait_s and not self._closing and (found := self._queue.peek(short_only=beside)):
            first, is_full = found
            ready_in_s = first.job.arrived_s + self._max_wait_s - time.monotonic()
            if ready_in_s > 0 and not is_full:
                return None, ready_in_s
        return self._queue.take(short_only=beside), None

    def _run(self, batch: Batch) -> None:
        try:
            self._embed(batch)
        except Exception as error:  # noqa: BLE001 - the thread must live on, and the clients must hear of it
            LOGGER.exception("a batch failed")
            self.failure = error
            self._finish(batch, None, error)

    def _embed(self, batch: Batch) -> None:
        start = time.monotonic()
        with self._changed:
            for row in batch.rows:
                if row.job.started_s is None:
                    row.job.started_s = start
                    self._metrics.job_started(start - row.job.arrived_s)
        ids = [row.job.ids[row.number] for row in batch.rows]
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        embeddings = self._embedder.embed_tokens(Tokens(ids, lengths))
        seconds = time.monotonic() - start
        self._finish(batch, embeddings, None)
        self._metrics.batch_ran(batch, seconds)
        speed = batch.tokens / max(seconds, 1e-6)
        self.tokens_per_s += (speed - self.tokens_per_s) * (_SMOOTHING if self.tokens_per_s else 1)

    def _finish(
        self, batch: Batch, embeddings: npt.NDArray[np.float32] | None, error: BaseException | None
    ) -> None:
        """Hand the rows to their jobs, and end the jobs that have all of theirs or lack one."""
        faults = [error] * len(batch.rows) if embeddings is None else faults_of(embeddings)
        if embeddings is not None:
            self.failure = next(filter(None, faults), None)
            if self.failure is not None:
                LOGGER.error("a batch failed: %s", self.failure)
        ended: list[tuple[Job, BaseException | None]] = []
        with self._changed:
            for place, (row, fault) in enumerate(zip(batch.rows, faults, strict=True)):
                job = row.job
                if job.ended:
                    continue
                if embeddings is not None:
                    job.out[row.number] = embeddings[place]
                job.left -= 1
                if fault is not None or not job.left:
                    self._queue.give_up(job)
                    ended.append((job, fault))
        for job, fault in ended:
            job.done(fault)


def faults_of(embeddings: npt.NDArray[np.float32]) -> list[BaseException | None]:
    """For each row, why no client can use it; None where all is well, whatever its neighbours are."""
    fault = FloatingPointError("an embedding is not finite: run koe5-onnx verify on the artifact")
    are_finite = np.asarray(np.isfinite(embeddings).all(axis=1))
    return [None if is_finite else fault for is_finite in are_finite.tolist()]
