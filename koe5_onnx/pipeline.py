"""Ids to embeddings: windows tokenised ahead, batches shared out among workers.

One window of texts is tokenised while the window before it runs. Each window is planned by itself; workers
are threads that take the next batch from one plan and write into their rows of one output: nothing queues up.

texts -> windows of ids (one ahead) -> plan -> workers: lay out, run, out[rows]
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from koe5_onnx.batching import Batch, pack, pack_for_cuda, pad, plan, plan_packed
from koe5_onnx.errors import OutOfMemoryError, SmallerBatchWarning
from koe5_onnx.session import Session
from koe5_onnx.tokenizer import Tokenizer, Tokens

WINDOW_TEXTS = 4096
"""Enough for full batches of nearly every width, few enough that the ids of a long run stay small."""


def tokenise_ahead(tokenizer: Tokenizer, texts: Sequence[str], window: int) -> Iterator[Tokens]:
    """The tokens of `texts`, a window at a time; each window is encoded while the caller uses the last one.

    Args:
        tokenizer: Safe to use from another thread.
        texts: Already checked and prompted.
        window: Texts a window, at least 1.
    """
    starts = range(0, len(texts), window)
    if len(starts) < 2:
        yield from (tokenizer.encode(texts) for _ in starts)
        return
    with ThreadPoolExecutor(1, "koe5-tokenise") as ahead:
        following = ahead.submit(tokenizer.encode, texts[:window])
        for start in starts:
            tokens = following.result()
            rest = texts[start + window : start + 2 * window]
            if len(rest):
                following = ahead.submit(tokenizer.encode, rest)
            yield tokens


def run_batches(
    session: Session,
    tokens: Tokens,
    out: npt.NDArray[np.float32],
    *,
    max_batch_tokens: int,
    pad_id: int,
    workers: int,
    on_batch: Callable[[int], None],
    halve: bool = True,
) -> None:
    """Embed one window.

    Args:
        session: Runs on `session.threads` threads for each worker.
        tokens: The window's ids.
        out: float32[n, dim], written in place.
        max_batch_tokens: Places of a batch.
        pad_id: Id of padding.
        workers: Threads that run batches at the same time, the caller's own among them.
        on_batch: Called after each batch with its tokens; never from two threads at once.
        halve: Go on in halves where a batch does not fit into the device's memory.

    Raises:
        OutOfMemoryError: A batch does not fit, and its halves (with `halve`) do not either.
    """
    lengths = tokens.lengths
    batches = plan_for(session, lengths, max_batch_tokens)

    def embed(batch: Batch) -> int:
        for part, rows in run_fitting(session, tokens.ids, batch, pad_id, halve):
            out[part.rows] = rows
        return int(lengths[batch.rows].sum())

    _share_out(batches, embed, min(workers, len(batches)), on_batch)


def plan_for(session: Session, lengths: npt.NDArray[np.int32], max_batch_tokens: int) -> list[Batch]:
    """Batches of rows with `lengths`, int32[n], as the session's graph wants them."""
    return (plan_packed if session.graph.is_packed else plan)(lengths, max_batch_tokens)


def run_fitting(
    session: Session, ids: Sequence[npt.NDArray[np.int32]], batch: Batch, pad_id: int, halve: bool = True
) -> Iterator[tuple[Batch, npt.NDArray[np.float32]]]:
    """Embed one batch, in halves from the first time on that one does not fit into the device's memory.

    Once: where a half does not fit either, something else takes the memory, and trying on would only be slow.

    Yields:
        Parts of the batch, and float32[n, dim] for each.

    Raises:
        OutOfMemoryError: A half, or one text, does not fit.
    """
    if not session.halves:
        try:
            rows = run_batch(session, ids, batch, pad_id)
        except OutOfMemoryError as error:
            if len(batch.rows) < 2 or not halve:
                raise
            session.halves = True
            warnings.warn(f"batches run in halves from now on: {error}", SmallerBatchWarning, stacklevel=2)
        else:
            yield batch, rows
            return
    # Every second row: rows come by length, so both halves have about as many tokens.
    for places in (batch.rows[::2], batch.rows[1::2]):
        if len(places):
            half = Batch(places, batch.width)
            yield half, run_batch(session, ids, half, pad_id)


def run_batch(
    session: Session, ids: Sequence[npt.NDArray[np.int32]], batch: Batch, pad_id: int
) -> npt.NDArray[np.float32]:
    """Embed the rows of one batch: float32[n, dim]."""
    if session.graph.layout == "packed":
        return session.run(*pack(ids, batch))
    if session.graph.layout == "packed_cuda":
        return session.run(*pack_for_cuda(ids, batch, pad_id, counts_from_pad=session.counts_from_pad))
    return session.run(*pad(ids, batch, pad_id))


class _Share:
    """Batches that several threads take from, each once and in order; the first error stops them all."""

    def __init__(self, batches: Sequence[Batch], on_batch: Callable[[int], None]) -> None:
        self.error: BaseException | None = None
        self._waiting = iter(batches)
        self._on_batch = on_batch
        self._lock = threading.Lock()

    def work(self, embed: Callable[[Batch], int]) -> None:
        try:
            while (batch := self._take()) is not None:
                tokens = embed(batch)
                with self._lock:
                    self._on_batch(tokens)
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the caller's thread
            self.error = error

    def _take(self) -> Batch | None:
        with self._lock:
            return next(self._waiting, None) if self.error is None else None


def _share_out(
    batches: Sequence[Batch], embed: Callable[[Batch], int], workers: int, on_batch: Callable[[int], None]
) -> None:
    """Run `embed` on each batch, on `workers` threads of which the caller's is one."""
    share = _Share(batches, on_batch)
    # Threads for one call, not a pool: they need no closing and cannot be lost in a fork.
    others = [threading.Thread(target=share.work, args=(embed,)) for _ in range(1, workers)]
    for thread in others:
        thread.start()
    share.work(embed)
    try:
        for thread in others:
            thread.join()
    except BaseException as error:
        share.error = error  # an interrupt: the others stop after their batch
        raise
    if share.error is not None:
        raise share.error
