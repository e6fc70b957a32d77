"""Tokenize texts in windows and run the batches of each window in parallel.

A window is a number of consecutive texts; it is tokenized while the previous window runs. The texts of a
window are grouped into batches. One or several threads take these batches and write the embeddings to a
shared output array.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from koe5_onnx.engine.batching import Batch, pack_cpu, pack_cuda, packed_batches, pad, padded_batches
from koe5_onnx.engine.session import Session
from koe5_onnx.errors import OutOfMemoryError, SmallerBatchWarning
from koe5_onnx.text.tokenizer import Tokenizer, Tokens

WINDOW_TEXTS = 4096
"""Texts per window: enough to fill batches of nearly every padded length, with bounded memory for the ids."""
FIRST_GPU_WINDOW_TEXTS = 128
"""Texts of the first window with the packed graph on a GPU, which is idle until they are tokenized; see
benchmarks/decisions/gpu.md."""


def tokenize_ahead(
    tokenizer: Tokenizer, texts: Sequence[str], window: int, first: int | None = None
) -> Iterator[Tokens]:
    """Yield the tokens of `texts` in windows, tokenizing the next window in a background thread.

    Args:
        tokenizer: Tokenizer.
        texts: Valid texts with their prompts.
        window: Texts per window, at least 1.
        first: Texts of the first window, at least 1. Each further window is twice as large as the one before
            it, up to `window`. None makes all windows equal.
    """
    windows = list(_windows(len(texts), window, first or window))
    if len(windows) < 2:
        yield from (tokenizer.encode(texts) for _ in windows)
        return
    ahead = ThreadPoolExecutor(1, "koe5-tokenize")
    try:
        following = ahead.submit(tokenizer.encode, texts[windows[0]])
        for rows in windows[1:]:
            tokens = following.result()
            following = ahead.submit(tokenizer.encode, texts[rows])
            yield tokens
        yield following.result()
    finally:
        # The garbage collector may close this generator in the background thread, which must not join itself.
        ahead.shutdown(wait=False, cancel_futures=True)


def _windows(texts: int, window: int, first: int) -> Iterator[slice]:
    start, size = 0, min(first, window)
    while start < texts:
        yield slice(start, start + size)
        start, size = start + size, min(2 * size, window)


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
        session: Session, which runs each batch on `session.threads` threads.
        tokens: Tokens of the window.
        out: float32[n, dim], written in place.
        max_batch_tokens: Maximum tokens per batch, padding included.
        parallel_batches: Batches that run at the same time, including one in the caller's thread.
        on_batch: Called after each batch with its number of tokens, never from two threads at once.
        halve: True to split a batch that does not fit into device memory, and all later ones, in half.

    Raises:
        OutOfMemoryError: A batch (with `halve`, half of a batch or a single text) does not fit into device
            memory.
    """
    lengths = tokens.lengths
    batches = (packed_batches if session.graph.is_packed else padded_batches)(lengths, max_batch_tokens)
    work = _Work(batches)

    def run() -> None:
        try:
            while (batch := work.take()) is not None:
                out[batch.rows] = run_batch(session, tokens.ids, batch, halve=halve)
                with work.lock:
                    on_batch(int(lengths[batch.rows].sum()))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            work.error = error

    # New threads for each call. Unlike a pool, they need no cleanup and are not lost in a fork.
    others = [threading.Thread(target=run) for _ in range(1, min(parallel_batches, len(batches)))]
    for thread in others:
        thread.start()
    run()
    try:
        for thread in others:
            thread.join()
    except BaseException as error:
        work.error = error  # so that after an interrupt, the other threads stop after their current batch
        raise
    if work.error is not None:
        raise work.error


def run_batch(
    session: Session, ids: Sequence[npt.NDArray[np.int32]], batch: Batch, *, halve: bool = True
) -> npt.NDArray[np.float32]:
    """Embed the texts of one batch.

    If the batch does not fit into device memory and `halve` is True, this batch and all later ones are
    embedded in two halves. Batches are not divided further: if half of a batch does not fit, something else
    probably occupies the memory.

    Returns:
        float32[n, dim] in the order of `batch.rows`.

    Raises:
        OutOfMemoryError: The batch (with `halve`, half of it or a single text) does not fit.
    """
    if not session.halves:
        try:
            return session.run(*_inputs(session, ids, batch))
        except OutOfMemoryError as error:
            if len(batch.rows) < 2 or not halve:
                raise
            session.halves = True
            warnings.warn(
                f"all further batches are split in half, because {error}", SmallerBatchWarning, stacklevel=2
            )
    # Texts are roughly sorted by length, so halves of every second text have about equally many tokens.
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
    if not session.graph.is_packed:
        return pad(ids, batch, session.pad_id)
    layout = pack_cpu if session.graph.layout == "packed_cpu" else pack_cuda
    return layout(ids, batch, session.pad_id, counts_from_pad=session.counts_from_pad)


class _Work:
    """Batches distributed to several threads; the first error stops all threads."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self._waiting = iter(batches)

    def take(self) -> Batch | None:
        """Return the next batch; None if none is left or a batch has failed."""
        with self.lock:
            return next(self._waiting, None) if self.error is None else None
