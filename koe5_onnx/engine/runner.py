"""Threads that take batches from the queue and run them on one session.

Up to `parallel_batches` batches run at the same time. While all of them have long texts, one additional
batch may run, so that a query does not wait for a long passage. It contains only short texts of jobs that
have not started: the additional batch slows down the others, which is not worth it for a job that is already
running. All batches use the same weights in memory, because ONNX Runtime can run one session several times
in parallel.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from koe5_onnx.engine.batching import Batch
from koe5_onnx.engine.pipeline import run_batch
from koe5_onnx.engine.queue import BatchQueue, Job, QueuedBatch
from koe5_onnx.engine.session import Session
from koe5_onnx.errors import ProviderError

_SMOOTHING = 0.2
"""Weight of the latest batch in the moving average of the speed (`Runner.tokens_per_s`)."""
_RUNNERS: weakref.WeakSet[Runner] = weakref.WeakSet()


class Observer:
    """Callbacks for the events of a runner, called on its threads. The default methods ignore all events."""

    def job_started(self, waited_s: float) -> None:
        """Handle the start of a job's first text, after `waited_s` seconds in the queue."""

    def batch_ran(self, batch: QueuedBatch, seconds: float) -> None:
        """Handle a batch that ran without an error."""

    def batch_failed(self, error: BaseException) -> None:
        """Handle the error of a batch, or the first one that `faults_of` returned for it."""

    def faults_of(self, embeddings: npt.NDArray[np.float32]) -> Sequence[BaseException | None]:
        """Check embeddings, float32[n, dim]. For each one, return None, or an error that fails its job."""
        return [None] * len(embeddings)


class Runner:
    """Runs submitted jobs.

    Args:
        session: Session that all threads use.
        max_batch_tokens: Maximum tokens per batch, padding included.
        parallel_batches: Batches that run at the same time; one batch of short texts may run in addition.
        max_wait_s: Maximum seconds that a batch with free slots waits for more texts before it runs.
        observer: Callbacks for events; None ignores them.
    """

    def __init__(
        self,
        session: Session,
        *,
        max_batch_tokens: int,
        parallel_batches: int,
        max_wait_s: float = 0.0,
        observer: Observer | None = None,
    ) -> None:
        self.tokens_per_s = 0.0
        """Moving average of the speed of a batch, in tokens without padding; 0 before the first batch."""
        self.failure: BaseException | None = None
        """Error of the last batch; None if it succeeded."""
        self._session, self._observer = session, observer or Observer()
        self._max_wait_s = max_wait_s
        self._queue = BatchQueue(
            max_batch_tokens,
            session.slots_per_row,
            is_packed=session.graph.is_packed,
        )
        self._permits = parallel_batches
        self._running: list[QueuedBatch] = []
        self._changed = threading.Condition()
        self._closing = self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"koe5-run-{number}", daemon=True)
            for number in range(parallel_batches + 1)
        ]
        for thread in self._threads:
            thread.start()
        _RUNNERS.add(self)

    @property
    def waiting_tokens(self) -> int:
        """Number of queued tokens."""
        return self._queue.tokens

    def submit(self, job: Job) -> None:
        """Queue a job. Its results are reported as in `Job`.

        Raises:
            ProviderError: The runner is closed.
        """
        with self._changed:
            if self._closing:
                raise ProviderError("the embedder is closed. Open the artifact again")
            self._queue.add(job)
            self._wake_others()

    def give_up(self, job: Job) -> None:
        """Cancel a job."""
        with self._changed:
            if not job.ended:
                self._queue.give_up(job)

    def drain_s(self) -> float:
        """Estimate the seconds until half of the queued tokens have run, at most 60; 1 before any batch."""
        return min(60.0, self._queue.tokens / 2 / self.tokens_per_s) if self.tokens_per_s else 1.0

    def close(self) -> None:
        """Run all queued jobs, then stop the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.join()

    def stop(self) -> None:
        """Discard queued jobs and let the threads end after their current batches. Do not wait for them."""
        with self._changed:
            self._closing = self._stopped = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the threads to end, after `stop` or `close`."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._run(batch)
            finally:
                # No notification is needed: this thread takes the next batch itself.
                with self._changed:
                    self._running.remove(batch)
            del batch  # frees the arrays of its jobs while this thread waits

    def _next(self) -> QueuedBatch | None:
        """Wait for the next batch; None if the runner is stopped, or closed with an empty queue."""
        with self._changed:
            while not self._stopped:
                batch, ready_in_s = self._take()
                if batch is not None:
                    self._running.append(batch)
                    # One more batch, or an additional short one, may be able to run.
                    self._wake_others()
                    return batch
                if self._closing and not self._queue.tokens:
                    self._changed.notify_all()
                    break
                self._changed.wait(ready_in_s)
            return None

    def _wake_others(self) -> None:
        """Wake the other threads if one of them may run another batch."""
        if self._may_begin():
            self._changed.notify_all()

    def _may_begin(self) -> bool:
        """Return True if another batch may run, even if only an additional one with short texts."""
        running = len(self._running)
        return running < self._permits or (
            running == self._permits and not any(one.is_short for one in self._running)
        )

    def _take(self) -> tuple[QueuedBatch | None, float | None]:
        """Return a batch that may run now, or the seconds until one may; both are None if this is unknown."""
        if not self._may_begin():
            return None, None
        beside = len(self._running) == self._permits
        if self._max_wait_s and not self._closing and (found := self._queue.peek(short_only=beside)):
            first, is_full = found
            ready_in_s = first.job.arrived_s + self._max_wait_s - time.monotonic()
            if ready_in_s > 0 and not is_full:
                return None, ready_in_s
        return self._queue.take(short_only=beside), None

    def _run(self, batch: QueuedBatch) -> None:
        try:
            self._embed(batch)
        except Exception as error:  # noqa: BLE001 - the thread must go on, and the jobs must fail
            self._fail(error)
            self._finish(batch, None, error)

    def _embed(self, batch: QueuedBatch) -> None:
        start = time.monotonic()
        with self._changed:
            for row in batch.rows:
                if row.job.started_s is None:
                    row.job.started_s = start
                    self._observer.job_started(start - row.job.arrived_s)
        ids = [row.job.ids[row.number] for row in batch.rows]
        # All rows of a padded batch have equally many slots; a packed batch does not use this number.
        rows = Batch(np.arange(len(ids)), batch.rows[0].slots)
        embeddings = run_batch(self._session, ids, rows)
        seconds = time.monotonic() - start
        self._finish(batch, embeddings, None)
        self._observer.batch_ran(batch, seconds)
        speed = batch.tokens / max(seconds, 1e-6)
        self.tokens_per_s += (speed - self.tokens_per_s) * (_SMOOTHING if self.tokens_per_s else 1)

    def _finish(
        self, batch: QueuedBatch, embeddings: npt.NDArray[np.float32] | None, error: BaseException | None
    ) -> None:
        """Copy embeddings, float32[n, dim], to the jobs of a batch. End jobs that are complete or failed."""
        faults: Sequence[BaseException | None] = [error] * len(batch.rows)
        if embeddings is not None:
            faults = self._observer.faults_of(embeddings)
            self._fail(next(filter(None, faults), None))
        ended: list[tuple[Job, BaseException | None]] = []
        with self._changed:
            for number, (row, fault) in enumerate(zip(batch.rows, faults, strict=True)):
                job = row.job
                if job.ended:
                    continue
                if embeddings is not None:
                    job.out[row.number] = embeddings[number]
                job.left -= 1
                if fault is not None or not job.left:
                    self._queue.give_up(job)
                    ended.append((job, fault))
        for job, fault in ended:
            job.done(fault)

    def _fail(self, error: BaseException | None) -> None:
        self.failure = error
        if error is not None:
            self._observer.batch_failed(error)


def _stop_all() -> None:
    """Stop all runners, so that no batch is running when the interpreter exits."""
    runners = list(_RUNNERS)
    for runner in runners:
        runner.stop()
    for runner in runners:
        runner.join()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    # A child process has no runner threads to stop, and might wait forever for a lock that one of them held.
    os.register_at_fork(after_in_child=_RUNNERS.clear)
