"""An Embedder for asyncio: the same methods, awaitable; concurrent calls share batches.

call -> tokenize, in the event loop if the text is short, else in a thread -> queue, with the rows of all
other calls -> the runner's threads run batches -> wake the event loop (async_bridge.py)

This module handles one call: its path, its cancellation and its end. The queue decides which rows run next;
the Embedder checks texts and raises errors. `koe5-onnx serve` uses the same queue.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from koe5_onnx.artifact.matryoshka import require_dim
from koe5_onnx.embedder import Embedder, Encoded, Window
from koe5_onnx.engine.async_bridge import BRIEF_CHARACTERS, Answers, Call, Tokenizing
from koe5_onnx.engine.pipeline import WINDOW_TEXTS
from koe5_onnx.engine.runner import Runner
from koe5_onnx.errors import InputError, ProviderError
from koe5_onnx.text.prompts import prompt_text

_TEXT_CHARACTERS = 16
"""What a text costs beside its characters, in characters."""
_LARGE_CALLS = 2
"""Calls of more than one window that run at the same time; this bounds the tokens that wait in memory."""
_ALL: weakref.WeakSet[AsyncEmbedder] = weakref.WeakSet()
"""Those of this process, for `_after_fork`."""


class AsyncEmbedder:
    """Embeds without blocking the event loop. Any number of tasks, and several loops, may share one.

    Calls that wait at the same time share batches: many short ones are about as fast as their texts in one
    call. Nothing waits for company: a call that comes alone runs at once. Each call gets its share of the
    machine: a query waits for the batch in work at most, not for the 10,000 texts that were there before.

    A call that is cancelled while it waits is never run; one that runs stops after the batch in work. Of
    calls of more than 4,096 texts two are in work at a time, window by window, and the others wait in order.
    Smaller ones hold their ids while they wait, which is about as much memory as their texts.

    Example::

        async with AsyncEmbedder(Embedder.open("koe5-int8")) as embedder:
            queries = await embedder.encode_queries(["대한민국의 수도는?"])

    Args:
        embedder: Opened; the AsyncEmbedder closes it when it is closed itself.
        parallel_batches: Batches that run at the same time; None takes the Embedder's. A short one, of
            queries, may run in addition while all of them are long. One batch already uses all threads of
            the Embedder: more are slower if cores are few.

    Raises:
        InputError: `parallel_batches` is below 1.
    """

    def __init__(self, embedder: Embedder, *, parallel_batches: int | None = None) -> None:
        if parallel_batches is not None and parallel_batches < 1:
            raise InputError(f"parallel_batches is {parallel_batches}: expected 1 or more, or None")
        self.embedder = embedder
        self.parallel_batches = parallel_batches or embedder.parallel_batches
        self._closed, self._lock = False, threading.Lock()
        self._threads: _Threads | None = None
        self._dropped: weakref.finalize[..., AsyncEmbedder] | None = None
        _ALL.add(self)

    async def encode_queries(
        self, texts: Sequence[str], *, dim: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed search queries: `encode` with `prompt_name="query"`."""
        return await self.encode(texts, "query", dim=dim)

    async def encode_passages(
        self, texts: Sequence[str], *, dim: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed passages to be found: `encode` with `prompt_name="passage"`."""
        return await self.encode(texts, "passage", dim=dim)

    async def encode(
        self,
        texts: Sequence[str],
        prompt_name: str | None = None,
        *,
        prompt: str | None = None,
        dim: int | None = None,
    ) -> npt.NDArray[np.float32]:
        """`Embedder.encode`: float32[len(texts), dim], with the same errors."""
        return (await self.encode_with_info(texts, prompt_name, prompt=prompt, dim=dim)).embeddings

    async def encode_with_info(
        self,
        texts: Sequence[str],
        prompt_name: str | None = None,
        *,
        prompt: str | None = None,
        dim: int | None = None,
    ) -> Encoded:
        """`Embedder.encode_with_info`, with the same errors. `texts` must not change meanwhile.

        Raises:
            ProviderError: The AsyncEmbedder is closed.
        """
        contract = self.embedder.contract
        require_dim(dim, contract)
        encoded = await self._encode(texts, prompt_text(contract, prompt_name, prompt))
        return encoded.shortened(dim, contract)

    async def _encode(self, texts: Sequence[str], prompt: str) -> Encoded:
        threads = self._started()
        call = Call(threads.runner)
        try:
            if len(texts) > WINDOW_TEXTS:
                return await threads.run_large(partial(self._run_windows, texts, prompt, call))
            size = _size_of(texts)
            encoded, window = await threads.tokenizing.run(
                partial(self._tokenize, texts, prompt), size, at_once=size <= BRIEF_CHARACTERS
            )
            if window is not None:
                ended, done = threads.answers.expect()
                call.submit(*window, done)
                await ended
            return encoded
        finally:
            call.give_up()

    def _tokenize(self, texts: Sequence[str], prompt: str) -> tuple[Encoded, Window | None]:
        """Tokenize texts of one window; None if there are none."""
        encoded, windows = self.embedder.tokenize_windows(texts, prompt)
        return encoded, next(windows, None)

    def _run_windows(self, texts: Sequence[str], prompt: str, call: Call) -> Encoded:
        """Run many texts window by window."""
        encoded, windows = self.embedder.tokenize_windows(texts, prompt)
        for tokens, out in windows:
            for start in range(0, len(tokens.ids), WINDOW_TEXTS):
                rows = slice(start, start + WINDOW_TEXTS)
                call.run_blocking(tokens[rows], out[rows])
        return encoded

    async def close(self) -> None:
        """Wait for the calls that run or wait, then close the Embedder."""
        import asyncio

        # In a thread, as it blocks until the last call is done.
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _close(self) -> None:
        with self._lock:
            self._closed = True
        if self._threads is not None:
            self._threads.close()
        self.embedder.close()

    def _started(self) -> _Threads:
        with self._lock:
            if self._closed:
                raise ProviderError("this AsyncEmbedder is closed: open the artifact again")
            if self._threads is None:
                self._threads = _Threads(self.embedder, self.parallel_batches)
                # One that is dropped without being closed must not live on in its threads.
                self._dropped = weakref.finalize(self, self._threads.runner.stop)
                self._dropped.atexit = False
            return self._threads

    def _leave_to_parent(self) -> None:
        """Begin anew in a forked child, which does not have the parent's threads."""
        # Another thread of the parent may have held the lock at the fork.
        self._lock, self._threads = threading.Lock(), None
        if self._dropped is not None:
            self._dropped.detach()


class _Threads:
    """What the calls of one AsyncEmbedder run in."""

    def __init__(self, embedder: Embedder, parallel_batches: int) -> None:
        self.runner = Runner(
            embedder.session,
            max_batch_tokens=embedder.max_batch_tokens,
            parallel_batches=parallel_batches,
        )
        self.tokenizing, self.answers = Tokenizing(), Answers()
        self._large = ThreadPoolExecutor(_LARGE_CALLS, "koe5-large")

    async def run_large(self, work: Callable[[], Encoded]) -> Encoded:
        """The result of a call that hands one window after another to the runner."""
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(self._large, work)

    def close(self) -> None:
        """Finish what was begun: first what hands texts to the runner, then the runner."""
        self.tokenizing.close()
        self._large.shutdown()
        self.runner.close()


def _size_of(texts: Sequence[str]) -> int:
    """What tokenizing costs, in characters; 0 where it fails."""
    try:
        return sum(map(len, texts)) + _TEXT_CHARACTERS * len(texts)
    except TypeError:  # not texts: the Embedder says so
        return 0


def _after_fork() -> None:
    for one in _ALL:
        one._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
