"""Threads that take batches from the queue and run them, all on one session.

As many batches run at once as `parallel_batches` says. One more may run beside them while all of those are
long and the extra one is short and of jobs that have not begun: the cores are shared for a moment, and a
query need not wait for a page to end. Short rows of jobs in work wait their turn: sharing the cores makes
both batches slower. ONNX Runtime runs several batches of one session at a time without a second copy of the
weights.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from koe5_onnx.engine.batching import Batch
from koe5_onnx.engine.pipeline import run_batch
from koe5_onnx.engine.queue import Job, Queue, QueuedBatch
from koe5_onnx.engine.session import Session
from koe5_onnx.errors import ProviderError

_SMOOTHING = 0.2
"""Weight of the newest batch in the speed that the time to drain is reckoned from."""
_RUNNERS: weakref.WeakSet[Runner] = weakref.WeakSet()
"""Those of this process, for `_stop_all`."""


class QueueFullError(Exception):
    """A job is not accepted, as too much waits already."""

    def __init__(self, waiting_tokens: int, drain_s: float) -> None:
        super().__init__(f"{waiting_tokens:,} tokens wait already")
        self.waiting_tokens, self.drain_s = waiting_tokens, drain_s
        """Seconds until half of the queue is done."""


class Observer:
    """Receives what a runner does, on its threads. This default implementation ignores it."""

    def job_started(self, waited_s: float) -> None:
        """The first row of a job left the queue."""

    def batch_ran(self, batch: QueuedBatch, seconds: float) -> None:
        """A batch ended well."""

    def batch_failed(self, error: BaseException) -> None:
        """A batch, or a row of one, failed."""

    def faults_of(self, embeddings: npt.NDArray[np.float32]) -> Sequence[BaseException | None]:
        """Return why the job of each row of float32[n, dim] must fail; None for rows that are fine."""
        return [None] * len(embeddings)


class Runner:
    """Runs what is submitted.

    Args:
        session: Used from all threads; each batch runs in one of them.
        max_batch_tokens: Slots of a batch.
        parallel_batches: Batches at the same time; a short one may run in addition to long ones.
        max_queue_tokens: More than that is refused.
        max_wait_s: How long a batch that is not full waits for more.
        observer: Receives what happens.
    """

    def __init__(
        self,
        session: Session,
        *,
        max_batch_tokens: int,
        parallel_batches: int,
        max_queue_tokens: float = math.inf,
        max_wait_s: float = 0.0,
        observer: Observer | None = None,
    ) -> None:
        self.tokens_per_s = 0.0
        """Speed of late, 0 before the first batch."""
        self.failure: BaseException | None = None
        """Why the last batch failed; None where it did not."""
        self._session, self._observer = session, observer or Observer()
        self._max_queue_tokens, self._max_wait_s = max_queue_tokens, max_wait_s
        self._queue = Queue(
            max_batch_tokens,
            session.padded_lengths,
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
        """Tokens that have not begun to run."""
        return self._queue.tokens

    def submit(self, job: Job) -> None:
        """Let a job run; `job.done` tells when.

        Raises:
            QueueFullError: Too much waits already.
            ProviderError: The runner is closed.
        """
        tokens = sum(map(len, job.ids))
        with self._changed:
            if self._closing:
                raise ProviderError("what runs the batches is closed: open the artifact again")
            if self._queue.tokens + tokens > self._max_queue_tokens:
                raise QueueFullError(self._queue.tokens, self._drain_s())
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
        self.join()

    def stop(self) -> None:
        """Forget what waits and end the threads after the batches in work, without waiting for them."""
        with self._changed:
            self._closing = self._stopped = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the threads, once they are to end."""
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
            del batch  # its jobs hold arrays, and the next may be long in coming

    def _next(self) -> QueuedBatch | None:
        """The next batch to run, once there is one; None where the runner is closed and the queue empty."""
        with self._changed:
            while not self._stopped:
                batch, ready_in_s = self._take()
                if batch is not None:
                    self._running.append(batch)
                    # A short batch may be allowed beside this one.
                    self._wake_others()
                    return batch
                if self._closing and not self._queue.tokens:
                    self._changed.notify_all()
                    break
                self._changed.wait(ready_in_s)
            return None

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

    def _take(self) -> tuple[QueuedBatch | None, float | None]:
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

    def _run(self, batch: QueuedBatch) -> None:
        try:
            self._embed(batch)
        except Exception as error:  # noqa: BLE001 - the thread must live on, and the callers must hear of it
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
        rows = Batch(np.arange(len(ids)), batch.rows[0].padded_length)  # all are of one padded length
        embeddings = run_batch(self._session, ids, rows)
        seconds = time.monotonic() - start
        self._finish(batch, embeddings, None)
        self._observer.batch_ran(batch, seconds)
        speed = batch.tokens / max(seconds, 1e-6)
        self.tokens_per_s += (speed - self.tokens_per_s) * (_SMOOTHING if self.tokens_per_s else 1)

    def _finish(
        self, batch: QueuedBatch, embeddings: npt.NDArray[np.float32] | None, error: BaseException | None
    ) -> None:
        """Hand the rows to their jobs, and end the jobs that have all of theirs or lack one."""
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
    """Let no batch be in work when the interpreter goes."""
    runners = list(_RUNNERS)
    for runner in runners:
        runner.stop()
    for runner in runners:
        runner.join()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    # Their threads stay in the parent; one of those may have held a lock.
    os.register_at_fork(after_in_child=_RUNNERS.clear)
