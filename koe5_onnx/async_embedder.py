"""An Embedder for asyncio: the same verbs, to be awaited.

Texts are embedded in threads of its own, so the event loop goes on: the tokenizer and ONNX Runtime let go of
the interpreter lock while they compute. It owns how many calls run at once and what happens to those that are
cancelled; everything else is the Embedder's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from koe5_onnx.embedder import Embedder, Encoded
from koe5_onnx.errors import InputError

T = TypeVar("T")


class AsyncEmbedder:
    """Embeds without blocking the event loop. Any number of tasks, and several loops, may share one.

    Calls run in the order in which they came, `concurrency` at a time; the others wait without a thread. One
    call uses all threads of the Embedder already: more at a time are hardly faster together, but two let a
    query run beside a long call. A call that is cancelled while it waits is never run; one that runs stops
    after the batch in work. Calls are not merged into batches; the server (`koe5-onnx serve`) does that.

    Example::

        async with AsyncEmbedder(Embedder.open("koe5-int8")) as embedder:
            queries = await embedder.encode_queries(["대한민국의 수도는?"])

    Args:
        embedder: Opened; the AsyncEmbedder closes it when it is closed itself.
        concurrency: Calls that run at the same time.

    Raises:
        InputError: `concurrency` is below 1.
    """

    def __init__(self, embedder: Embedder, *, concurrency: int = 2) -> None:
        if concurrency < 1:
            raise InputError(f"concurrency is {concurrency}: expected 1 or more")
        self.embedder = embedder
        self.concurrency = concurrency
        self._start_threads()

    async def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed search queries: `encode` with the prompt "query"."""
        return await self.encode(texts, "query")

    async def encode_passages(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed passages to be found: `encode` with the prompt "passage"."""
        return await self.encode(texts, "passage")

    async def encode(self, texts: Sequence[str], prompt: str | None = None) -> npt.NDArray[np.float32]:
        """`Embedder.encode`: float32[len(texts), dim], with the same errors."""
        return (await self.encode_with_info(texts, prompt)).embeddings

    async def encode_with_info(self, texts: Sequence[str], prompt: str | None = None) -> Encoded:
        """`Embedder.encode_with_info`, with the same errors. `texts` must not change meanwhile."""
        given_up = threading.Event()

        def stop_if_given_up(_done_tokens: int, _all_tokens: int) -> None:
            if given_up.is_set():
                raise _GivenUpError

        try:
            return await self._run(
                partial(self.embedder.encode_with_info, texts, prompt, on_progress=stop_if_given_up)
            )
        finally:
            given_up.set()

    async def close(self) -> None:
        """Wait for the calls that run or wait, then close the Embedder."""
        import asyncio

        # In a thread, as it blocks until the last call is done.
        await asyncio.to_thread(self._threads.shutdown)
        self.embedder.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _start_threads(self) -> None:
        self._process = os.getpid()
        self._threads = ThreadPoolExecutor(self.concurrency, "koe5-async")

    async def _run(self, call: Callable[[], T]) -> T:
        # Its import takes 20 ms, which those who embed without it need not wait for.
        import asyncio

        if self._process != os.getpid():
            self._start_threads()  # those of the parent did not survive the fork
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


class _GivenUpError(Exception):
    """Ends a call that nobody waits for any more; nobody sees it."""
