"""The rows of all waiting calls, and which of them run next. No threads and no clock of its own.

Each call (of an AsyncEmbedder, or a request to the server) is a flow of start-time fair queueing: a row's tag
is the virtual time at which it would begin if every call had an equal share of the machine. A query that
arrives behind a call with a thousand pages therefore has the lowest tag. Among themselves the rows of a call
run longest first.

Rows of one batch are equally long after padding, or any where nothing is padded; short and long texts do not
share one, so that a query never takes as long as a page.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

SHORT_TOKENS = 128
"""Queries and sentences: what may run beside long texts."""
EXPRESS_TOKENS = 256
"""Most tokens of a batch that runs beside long texts."""
_MOST_GIVEN_UP = 4096
"""Rows nobody waits for that may stay until their turn comes; more only where as many are waited for."""


@dataclass(eq=False)
class Job:
    """The rows of one call."""

    ids: Sequence[npt.NDArray[np.int32]]
    out: npt.NDArray[np.float32]
    """float32[n, dim], filled row by row."""
    done: Callable[[BaseException | None], None]
    """Called once, from any thread, when all rows are there or one has failed."""
    arrived_s: float
    left: int = 0
    """Rows without an answer."""
    waiting_tokens: int = 0
    started_s: float | None = None
    """When its first row ran."""
    waiting_rows: int = 0
    ended: bool = False
    """Answered, failed or given up: its rows are skipped."""

    @property
    def has_begun(self) -> bool:
        """Whether a row of it has been taken."""
        return self.waiting_rows < len(self.ids)


@dataclass(eq=False)
class Row:
    """One text of a job."""

    job: Job
    number: int
    tokens: int
    padded_length: int


@dataclass
class QueuedBatch:
    """Rows of waiting jobs that run together."""

    rows: list[Row]
    is_short: bool

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(row.tokens for row in self.rows)

    @property
    def slots(self) -> int:
        """Tokens with padding."""
        return sum(row.padded_length for row in self.rows)


@dataclass(order=True)
class _Tagged:
    start: float
    order: int
    row: Row = field(compare=False)


class Queue:
    """Waiting rows.

    Args:
        max_batch_tokens: Slots of a batch; a longer row runs alone.
        padded_lengths: See `Session.padded_lengths`.
        is_packed: True if rows of any lengths may share a batch.
    """

    def __init__(
        self,
        max_batch_tokens: int,
        padded_lengths: Callable[[npt.NDArray[np.int32]], npt.NDArray[np.int32]],
        *,
        is_packed: bool,
    ) -> None:
        self.tokens = 0
        """Of all that wait."""
        self._max_batch_tokens = max_batch_tokens
        self._padded_lengths, self._is_packed = padded_lengths, is_packed
        self._groups: dict[tuple[bool, int], list[_Tagged]] = {}
        self._now = 0.0
        self._rows = self._given_up = 0
        """Of all heaps, and those among them that nobody waits for."""
        self._order = itertools.count()

    def add(self, job: Job) -> None:
        """Let all rows of a job wait."""
        lengths = np.fromiter((len(ids) for ids in job.ids), np.int32, len(job.ids))
        start = self._now
        tokens_of, padded_of = lengths.tolist(), self._padded_lengths(lengths).tolist()
        # Longest first: rows of like length fill batches best.
        for number in np.argsort(-lengths, kind="stable").tolist():
            tokens, padded = tokens_of[number], padded_of[number]
            group = (tokens <= SHORT_TOKENS, 0 if self._is_packed else padded)
            tagged = _Tagged(start, next(self._order), Row(job, number, tokens, padded))
            heapq.heappush(self._groups.setdefault(group, []), tagged)
            start += tokens
        job.left = job.waiting_rows = len(job.ids)
        self._rows += job.waiting_rows
        job.waiting_tokens = int(lengths.sum())
        self.tokens += job.waiting_tokens

    def give_up(self, job: Job) -> None:
        """Forget the waiting rows of a job; those that run already run on for nobody."""
        if job.ended:
            return
        job.ended = True
        self.tokens -= job.waiting_tokens
        self._given_up += job.waiting_rows
        job.waiting_tokens = job.waiting_rows = 0
        if self._given_up > max(_MOST_GIVEN_UP, self._rows - self._given_up):
            self._sweep()

    def peek(self, *, short_only: bool = False) -> tuple[Row, bool] | None:
        """The row that begins the next batch, and whether the batch would be full; None where none waits."""
        group = self._next_group(short_only=short_only)
        if group is None:
            return None
        waiting = self._groups[group]
        # An upper bound: rows that were given up are still counted.
        return waiting[0].row, sum(one.row.padded_length for one in waiting) >= self._max_batch_tokens

    def take(self, *, short_only: bool = False) -> QueuedBatch | None:
        """The next batch, no longer waiting; None where none waits.

        Args:
            short_only: Few rows, short ones of jobs that have not begun: the batch is to run beside others.
        """
        group = self._next_group(short_only=short_only)
        if group is None:
            return None
        budget = min(EXPRESS_TOKENS, self._max_batch_tokens) if short_only else self._max_batch_tokens
        self._now = max(self._now, self._groups[group][0].start)
        return QueuedBatch(self._fill(group, budget, fresh_only=short_only), group[0])

    def _fill(self, group: tuple[bool, int], budget: int, *, fresh_only: bool) -> list[Row]:
        waiting, slots = self._groups[group], 0
        rows: list[Row] = []
        begun: set[Job] = set()
        while waiting and (not rows or slots + waiting[0].row.padded_length <= budget):
            job = waiting[0].row.job
            if job.ended:
                self._pop(waiting)
                continue
            if fresh_only and job.has_begun and job not in begun:
                break
            begun.add(job)
            row = self._pop(waiting)
            rows.append(row)
            slots += row.padded_length
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
        """Whether a row is left at the head of a group."""
        waiting = self._groups[group]
        while waiting and waiting[0].row.job.ended:
            self._pop(waiting)
        if not waiting:
            del self._groups[group]
        return bool(waiting)

    def _pop(self, waiting: list[_Tagged]) -> Row:
        row = heapq.heappop(waiting).row
        self._rows -= 1
        self._given_up -= row.job.ended
        return row

    def _sweep(self) -> None:
        """Let go of what was given up; clients that come and go would fill the memory with it."""
        for group, waiting in list(self._groups.items()):
            kept = [one for one in waiting if not one.row.job.ended]
            if kept:
                heapq.heapify(kept)
                self._groups[group] = kept
            else:
                del self._groups[group]
        self._rows -= self._given_up
        self._given_up = 0
