"""The asyncio API: the `encode` methods of Embedder as coroutines. Concurrent calls share batches.

The texts of a call are tokenized in the event loop if they are short, and otherwise in a thread. A queue
(engine/queue.py) holds the tokens of all calls. The threads of a runner (engine/runner.py) run them in
batches, and engine/async_bridge.py wakes the event loop when results are complete. `koe5-onnx serve` also
uses these three modules.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from koe5_onnx.artifact.matryoshka import require_dim
from koe5_onnx.embedder import Embedder, Encoded, Window, as_sequence, windows_of
from koe5_onnx.engine.async_bridge import BRIEF_CHARACTERS, Answers, Call, Tokenizing
from koe5_onnx.engine.pipeline import WINDOW_TEXTS
from koe5_onnx.engine.runner import Runner
from koe5_onnx.errors import InputError, ProviderError
from koe5_onnx.text.prompts import prompt_text

_TEXT_CHARACTERS = 16
"""Fixed cost of tokenizing a text, as the number of characters that take as long."""
_LARGE_CALLS = 2
"""Maximum number of calls of more than 4,096 texts that run at the same time, which bounds the memory."""
_ALL: weakref.WeakSet[AsyncEmbedder] = weakref.WeakSet()


class AsyncEmbedder:
    """Computes embeddings without blocking the event loop. Tasks and event loops can share one instance.

    Concurrent calls share batches, so many short calls are faster than if they ran one by one. A call that
    arrives alone runs immediately. Calls are scheduled fairly: a query does not wait until 10,000 texts that
    were submitted earlier are done.

    A call that is canceled while queued never runs; a running call stops after its current batch. At most
    two calls with sequences of more than 4,096 texts run at the same time; other such calls wait. Their texts
    are queued in windows of 4,096.

    ```python
    async with AsyncEmbedder(Embedder.open("koe5-int8")) as embedder:
        queries = await embedder.encode_queries(["대한민국의 수도는?"])
    ```

    Args:
        embedder: Opened Embedder. `close` also closes it.
        parallel_batches: Batches that run at the same time; None uses the Embedder's value. While all of them
            have long texts, one additional batch of short texts may run. Each batch uses as many threads as
            the Embedder, so on few cores, more parallel batches are slower.

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

    def __reduce__(self) -> tuple[Callable[..., AsyncEmbedder], tuple[Embedder]]:
        return partial(type(self), parallel_batches=self.parallel_batches), (self.embedder,)

    async def encode_queries(
        self, texts: Iterable[str], *, dim: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed search queries; same as `encode` with `prompt_name="query"`."""
        return await self.encode(texts, "query", dim=dim)

    async def encode_passages(
        self, texts: Iterable[str], *, dim: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed documents; same as `encode` with `prompt_name="passage"`."""
        return await self.encode(texts, "passage", dim=dim)

    async def encode(
        self,
        texts: Iterable[str],
        prompt_name: str | None = None,
        *,
        prompt: str | None = None,
        dim: int | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embed texts: float32[n, dim]. Arguments and errors are as in `Embedder.encode`."""
        return (await self.encode_with_info(texts, prompt_name, prompt=prompt, dim=dim)).embeddings

    async def encode_with_info(
        self,
        texts: Iterable[str],
        prompt_name: str | None = None,
        *,
        prompt: str | None = None,
        dim: int | None = None,
    ) -> Encoded:
        """Embed texts; also return token counts and flags per text.

        Arguments and errors are as in `Embedder.encode`. Do not modify `texts` during the call.

        Raises:
            ProviderError: The AsyncEmbedder is closed, or a batch does not fit into device memory.
        """
        contract = self.embedder.contract
        require_dim(dim, contract)
        prompt = prompt_text(contract, prompt_name, prompt)
        if isinstance(texts, Iterator):
            parts = [await self._encode(part, prompt) for part in windows_of(texts)]
            return Encoded.joined(parts, contract.dim).shortened(dim, contract)
        return (await self._encode(as_sequence(texts), prompt)).shortened(dim, contract)

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
                with self.embedder.distinct(*window) as distinct:
                    ended, done = threads.answers.expect()
                    call.submit(*distinct, done)
                    await ended
            return encoded
        finally:
            call.give_up()

    def _tokenize(self, texts: Sequence[str], prompt: str) -> tuple[Encoded, Window | None]:
        """Tokenize the texts of one window; the window is None if there are no texts."""
        encoded, windows = self.embedder.tokenize_windows(texts, prompt)
        return encoded, next(windows, None)

    def _run_windows(self, texts: Sequence[str], prompt: str, call: Call) -> Encoded:
        encoded, windows = self.embedder.tokenize_windows(texts, prompt)
        for window in windows:
            with self.embedder.distinct(*window) as (tokens, out):
                for start in range(0, len(tokens.ids), WINDOW_TEXTS):
                    rows = slice(start, start + WINDOW_TEXTS)
                    call.run_blocking(tokens[rows], out[rows])
        return encoded

    async def close(self) -> None:
        """Finish all running and queued calls, then close the Embedder."""
        import asyncio

        # In a thread, because `_close` blocks until the last call has finished.
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
                raise ProviderError("this AsyncEmbedder is closed. Open the artifact again")
            if self._threads is None:
                self._threads = _Threads(self.embedder, self.parallel_batches)
                # Stop the threads if the instance is garbage-collected without being closed.
                self._dropped = weakref.finalize(self, self._threads.runner.stop)
                self._dropped.atexit = False
            return self._threads

    def _leave_to_parent(self) -> None:
        """Reset the state in a forked child, which does not have the parent's threads."""
        # Another thread of the parent may have held the lock at the fork.
        self._lock, self._threads = threading.Lock(), None
        if self._dropped is not None:
            self._dropped.detach()


class _Threads:
    def __init__(self, embedder: Embedder, parallel_batches: int) -> None:
        self.runner = Runner(
            embedder.session,
            max_batch_tokens=embedder.queue_batch_tokens,
            parallel_batches=parallel_batches,
        )
        self.tokenizing, self.answers = Tokenizing(), Answers()
        self._large = ThreadPoolExecutor(_LARGE_CALLS, "koe5-large")

    async def run_large(self, work: Callable[[], Encoded]) -> Encoded:
        """Run a call of several windows in a thread."""
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(self._large, work)

    def close(self) -> None:
        """Finish all queued jobs. The runner closes last, because threads of large calls use it."""
        self.tokenizing.close()
        self._large.shutdown()
        self.runner.close()


def _size_of(texts: Sequence[str]) -> int:
    """Estimate the cost of tokenization in characters; 0 if a text has no length."""
    try:
        return sum(map(len, texts)) + _TEXT_CHARACTERS * len(texts)
    except TypeError:  # tokenize_windows reports the invalid text
        return 0


def _after_fork() -> None:
    for one in _ALL:
        one._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
