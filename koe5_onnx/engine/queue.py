"""A fair queue for the texts of concurrent calls. It is not thread-safe and uses no clock.

A job has texts of one call of an AsyncEmbedder or of one request to the server; each text is a row. A large
call or request submits several jobs, one after the other.

Scheduling is start-time fair queueing with one flow per job. The tag of a row is the virtual time at which it
would start if all jobs shared the machine equally, and the row with the lowest tag runs first. A query
therefore runs before the remaining rows of a large job that arrived earlier. Rows of the same job run
longest first.

A slot is one token of a row, padding included. With the padded graph, all rows of a batch have the same
number of slots. Short and long rows never share a batch, so that a query does not take as long as a long
passage.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

SHORT_TOKENS = 128
"""Maximum tokens of a short row, such as a query or a sentence."""
EXPRESS_TOKENS = 256
"""Maximum slots of a batch of short rows that runs in addition to batches of long rows (see runner.py)."""
_MOST_GIVEN_UP = 4096
"""Canceled rows are removed from the heaps if there are more of them than this, and than active rows."""


@dataclass(eq=False)
class Job:
    """Texts of one call or request that are queued together."""

    ids: Sequence[npt.NDArray[np.int32]]
    """int32[tokens] per row."""
    out: npt.NDArray[np.float32]
    """float32[n, dim], filled with the embeddings."""
    done: Callable[[BaseException | None], None]
    """Called once, from any thread, when all rows have run (with None) or one has failed (with the error).
    Not called if the job is canceled or the runner is stopped before."""
    arrived_s: float
    """Time of arrival, from `time.monotonic`."""
    left: int = 0
    """Number of rows without a result."""
    waiting_tokens: int = 0
    started_s: float | None = None
    """Time at which the first row started; None while all rows are queued."""
    waiting_rows: int = 0
    ended: bool = False
    """True if the job is complete, failed or canceled. Its remaining rows are skipped."""

    @property
    def has_begun(self) -> bool:
        """True if a row of the job has left the queue."""
        return self.waiting_rows < len(self.ids)


@dataclass(eq=False)
class QueuedRow:
    """A row of a job."""

    job: Job
    number: int
    """Index of the row in its job."""
    tokens: int
    slots: int
    """Tokens with padding; equal to `tokens` if the graph is packed."""


@dataclass
class QueuedBatch:
    """Queued rows that run as one batch."""

    rows: list[QueuedRow]
    is_short: bool

    @property
    def tokens(self) -> int:
        """Number of tokens without padding."""
        return sum(row.tokens for row in self.rows)

    @property
    def slots(self) -> int:
        """Number of tokens with padding."""
        return sum(row.slots for row in self.rows)


@dataclass(order=True)
class _Tagged:
    start: float
    order: int
    row: QueuedRow = field(compare=False)


class BatchQueue:
    """Queued rows of all jobs.

    Args:
        max_batch_tokens: Maximum slots per batch; a longer row runs alone.
        slots_per_row: Function from the tokens of rows, int32[n], to their slots, int32[n].
        is_packed: True if rows with different numbers of slots may share a batch.
    """

    def __init__(
        self,
        max_batch_tokens: int,
        slots_per_row: Callable[[npt.NDArray[np.int32]], npt.NDArray[np.int32]],
        *,
        is_packed: bool,
    ) -> None:
        self.tokens = 0
        """Total of queued tokens."""
        self._max_batch_tokens = max_batch_tokens
        self._slots_per_row, self._is_packed = slots_per_row, is_packed
        self._groups: dict[tuple[bool, int], list[_Tagged]] = {}
        self._now = 0.0
        self._rows = self._given_up = 0
        """Number of rows in all heaps, and how many of them are canceled."""
        self._order = itertools.count()

    def add(self, job: Job) -> None:
        """Queue all rows of a job."""
        lengths = np.fromiter((len(ids) for ids in job.ids), np.int32, len(job.ids))
        start = self._now
        tokens_of, slots_of = lengths.tolist(), self._slots_per_row(lengths).tolist()
        # Longest first, so that rows of similar length share a batch.
        for number in np.argsort(-lengths, kind="stable").tolist():
            tokens, slots = tokens_of[number], slots_of[number]
            group = (tokens <= SHORT_TOKENS, 0 if self._is_packed else slots)
            tagged = _Tagged(start, next(self._order), QueuedRow(job, number, tokens, slots))
            heapq.heappush(self._groups.setdefault(group, []), tagged)
            start += tokens
        job.left = job.waiting_rows = len(job.ids)
        self._rows += job.waiting_rows
        job.waiting_tokens = int(lengths.sum())
        self.tokens += job.waiting_tokens

    def give_up(self, job: Job) -> None:
        """Cancel the queued rows of a job. Rows that are already running finish, and are discarded."""
        if job.ended:
            return
        job.ended = True
        self.tokens -= job.waiting_tokens
        self._given_up += job.waiting_rows
        job.waiting_tokens = job.waiting_rows = 0
        if self._given_up > max(_MOST_GIVEN_UP, self._rows - self._given_up):
            self._sweep()

    def peek(self, *, short_only: bool = False) -> tuple[QueuedRow, bool] | None:
        """Return the first row of the next batch, and True if the batch is full; None if there is no row."""
        group = self._next_group(short_only=short_only)
        if group is None:
            return None
        waiting = self._groups[group]
        # The sum includes canceled rows, so a batch may count as full too early.
        return waiting[0].row, sum(one.row.slots for one in waiting) >= self._max_batch_tokens

    def take(self, *, short_only: bool = False) -> QueuedBatch | None:
        """Remove and return the next batch; None if there is none.

        Args:
            short_only: True to take only short rows of jobs that have not started, up to `EXPRESS_TOKENS`.
        """
        group = self._next_group(short_only=short_only)
        if group is None:
            return None
        budget = min(EXPRESS_TOKENS, self._max_batch_tokens) if short_only else self._max_batch_tokens
        self._now = max(self._now, self._groups[group][0].start)
        return QueuedBatch(self._fill(group, budget, fresh_only=short_only), group[0])

    def _fill(self, group: tuple[bool, int], budget: int, *, fresh_only: bool) -> list[QueuedRow]:
        waiting, slots = self._groups[group], 0
        rows: list[QueuedRow] = []
        begun: set[Job] = set()
        while waiting and (not rows or slots + waiting[0].row.slots <= budget):
            job = waiting[0].row.job
            if job.ended:
                self._pop(waiting)
                continue
            if fresh_only and job.has_begun and job not in begun:
                break
            begun.add(job)
            row = self._pop(waiting)
            rows.append(row)
            slots += row.slots
            row.job.waiting_rows -= 1
            row.job.waiting_tokens -= row.tokens
            self.tokens -= row.tokens
        if not waiting:
            del self._groups[group]
        return rows

    def _next_group(self, *, short_only: bool) -> tuple[bool, int] | None:
        best: tuple[bool, int] | None = None
        for group in list(self._groups):
            if (short_only and not group[0]) or not self._drop_ended(group):
                continue
            if short_only and self._groups[group][0].row.job.has_begun:
                continue
            if best is None or self._groups[group][0] < self._groups[best][0]:
                best = group
        return best

    def _drop_ended(self, group: tuple[bool, int]) -> bool:
        """Remove rows of ended jobs from the head of a group; return True if the group is not empty."""
        waiting = self._groups[group]
        while waiting and waiting[0].row.job.ended:
            self._pop(waiting)
        if not waiting:
            del self._groups[group]
        return bool(waiting)

    def _pop(self, waiting: list[_Tagged]) -> QueuedRow:
        row = heapq.heappop(waiting).row
        self._rows -= 1
        self._given_up -= row.job.ended
        return row

    def _sweep(self) -> None:
        """Remove canceled rows, since disconnecting clients would otherwise fill the memory."""
        for group, waiting in list(self._groups.items()):
            kept = [one for one in waiting if not one.row.job.ended]
            if kept:
                heapq.heapify(kept)
                self._groups[group] = kept
            else:
                del self._groups[group]
        self._rows -= self._given_up
        self._given_up = 0
