"""Token ids to embeddings: windows of texts tokenized ahead, batches run in parallel.

One window of texts is tokenized while the window before it runs. Each window is planned by itself; threads
take the next batch from one plan and write into their rows of one output.

texts -> windows of ids (one ahead) -> plan -> threads: lay out, run, out[rows]
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from koe5_onnx.engine.batching import Batch, pack, pack_for_cuda, pad, plan, plan_packed
from koe5_onnx.engine.session import Session
from koe5_onnx.errors import OutOfMemoryError, SmallerBatchWarning
from koe5_onnx.text.tokenizer import Tokenizer, Tokens

WINDOW_TEXTS = 4096
"""Enough for full batches of nearly every padded length, few enough to keep the ids of a long run small."""


def tokenize_ahead(tokenizer: Tokenizer, texts: Sequence[str], window: int) -> Iterator[Tokens]:
    """Yield the tokens of `texts` by windows; each window is tokenized while the caller uses the one before.

    Args:
        tokenizer: Safe to use from another thread.
        texts: Already checked, with their prompts.
        window: Texts per window, at least 1.
    """
    starts = range(0, len(texts), window)
    if len(starts) < 2:
        yield from (tokenizer.encode(texts) for _ in starts)
        return
    with ThreadPoolExecutor(1, "koe5-tokenize") as ahead:
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
    parallel_batches: int = 1,
    on_batch: Callable[[int], None] = lambda _tokens: None,
    halve: bool = True,
) -> None:
    """Embed one window.

    Args:
        session: Runs each batch on `session.threads` threads.
        tokens: The window's ids.
        out: float32[n, dim], written in place.
        max_batch_tokens: Slots of a batch.
        parallel_batches: Threads that run batches at the same time, including the caller's.
        on_batch: Called after each batch with its tokens; never from two threads at once.
        halve: Continue with half the batch if one does not fit into the device's memory.

    Raises:
        OutOfMemoryError: A batch does not fit, and with `halve` its halves do not either.
    """
    lengths = tokens.lengths
    batches = (plan_packed if session.graph.is_packed else plan)(lengths, max_batch_tokens)
    work = _Work(batches)

    def run() -> None:
        try:
            while (batch := work.take()) is not None:
                out[batch.rows] = run_batch(session, tokens.ids, batch, halve=halve)
                with work.lock:
                    on_batch(int(lengths[batch.rows].sum()))
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the caller's thread
            work.error = error

    # Threads for one call, not a pool: they need no closing and cannot be lost in a fork.
    others = [threading.Thread(target=run) for _ in range(1, min(parallel_batches, len(batches)))]
    for thread in others:
        thread.start()
    run()
    try:
        for thread in others:
            thread.join()
    except BaseException as error:
        work.error = error  # an interrupt: the others stop after their batch
        raise
    if work.error is not None:
        raise work.error


def run_batch(
    session: Session, ids: Sequence[npt.NDArray[np.int32]], batch: Batch, *, halve: bool = True
) -> npt.NDArray[np.float32]:
    """Embed the rows of one batch; in two halves once a batch did not fit into the device's memory.

    If a half does not fit either, something else takes the memory, and dividing further would only be slow.

    Returns:
        float32[n, dim] in the order of `batch.rows`.

    Raises:
        OutOfMemoryError: A half, or one text, does not fit.
    """
    if not session.halves:
        try:
            return session.run(*_inputs(session, ids, batch))
        except OutOfMemoryError as error:
            if len(batch.rows) < 2 or not halve:
                raise
            session.halves = True
            warnings.warn(f"batches run in halves from now on: {error}", SmallerBatchWarning, stacklevel=2)
    # Every second row: rows are sorted by length, so both halves have about as many tokens.
    halves = [part for part in (slice(0, None, 2), slice(1, None, 2)) if len(batch.rows[part])]
    found = [
        session.run(*_inputs(session, ids, Batch(batch.rows[part], batch.padded_length))) for part in halves
    ]
    embeddings = np.empty((len(batch.rows), found[0].shape[1]), dtype=np.float32)
    for part, rows in zip(halves, found, strict=True):
        embeddings[part] = rows
    return embeddings


def _inputs(
    session: Session, ids: Sequence[npt.NDArray[np.int32]], batch: Batch
) -> Sequence[npt.NDArray[np.int64] | npt.NDArray[np.int32]]:
    """Lay out a batch as the session's graph takes it."""
    if session.graph.layout == "packed":
        return pack(ids, batch)
    if session.graph.layout == "packed_cuda":
        return pack_for_cuda(ids, batch, session.pad_id, counts_from_pad=session.counts_from_pad)
    return pad(ids, batch, session.pad_id)


class _Work:
    """Batches that several threads take in order, each once; the first error stops them all."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self._waiting = iter(batches)

    def take(self) -> Batch | None:
        """Return the next batch; None if there is none or one has failed."""
        with self.lock:
            return next(self._waiting, None) if self.error is None else None
