"""Connect asyncio event loops with a Runner: tokenization threads, cancelable calls and their results.

Used by AsyncEmbedder and the server. Several event loops can share an object of this module. asyncio is
imported inside functions, because the import is slow and synchronous callers do not need it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from koe5_onnx.engine.queue import Job
from koe5_onnx.engine.runner import Runner
from koe5_onnx.text.tokenizer import Tokens

if TYPE_CHECKING:
    import asyncio

BRIEF_CHARACTERS = 512
"""Maximum characters of a call that is tokenized in the event loop. This takes about 0.2 ms; a switch to a
thread would take about 0.1 ms."""
_SHORT_CHARACTERS = 16_384
"""Maximum characters of a call that is tokenized in the thread for short calls. Longer calls use another
thread, so that short ones do not wait for them."""

T = TypeVar("T")
Tell = Callable[[BaseException | None], None]
"""Function that completes a future. Its argument is an error, or None for success. Any thread may call it."""


class GivenUpError(Exception):
    """The call was canceled."""


class Call:
    """A call whose texts are submitted to a runner as one job, or as several jobs one after the other."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._job: Job | None = None
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._is_given_up = False
        self._error: BaseException | None = None

    def submit(self, tokens: Tokens, out: npt.NDArray[np.float32], done: Tell) -> Job:
        """Queue a job that embeds texts into `out`, float32[n, dim]. `done` is called as in `Job`.

        Raises:
            GivenUpError: The call was canceled.
            ProviderError: See `Runner.submit`.
        """
        job = Job(tokens.ids, out, done, time.monotonic())
        # The lock is held until the runner has the job, so that `give_up` cannot miss the job.
        with self._lock:
            if self._is_given_up:
                raise GivenUpError
            self._runner.submit(job)
            self._job = job
        return job

    def run_blocking(self, tokens: Tokens, out: npt.NDArray[np.float32]) -> None:
        """Embed texts into `out`, float32[n, dim], and block until they are done.

        Raises:
            GivenUpError: The call was canceled.
            Exception: The error with which the job failed.
        """
        self._ended.clear()
        self.submit(tokens, out, self._end)
        self._ended.wait()
        if self._error is not None:
            raise self._error

    def give_up(self) -> None:
        """Cancel the call. No effect if it has finished."""
        with self._lock:
            self._is_given_up = True
            if self._job is not None and not self._job.ended:
                self._runner.give_up(self._job)
        self._end(GivenUpError())

    def _end(self, error: BaseException | None) -> None:
        self._error = error
        self._ended.set()


class Tokenizing:
    """Tokenization threads, for texts that would block the event loop for too long."""

    def __init__(self) -> None:
        self._short, self._long = (
            ThreadPoolExecutor(1, f"koe5-tokenize-{kind}") for kind in ("short", "long")
        )

    async def run(self, work: Callable[[], T], characters: int, *, at_once: bool = False) -> T:
        """Run `work` in a thread and return its result.

        Args:
            work: Function to run.
            characters: Characters that `work` tokenizes; this selects the thread.
            at_once: True to run `work` in the event loop instead.
        """
        if at_once:
            return work()
        import asyncio

        thread = self._short if characters <= _SHORT_CHARACTERS else self._long
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    def close(self) -> None:
        """Finish all tokenization and stop the threads."""
        self._short.shutdown()
        self._long.shutdown()


class Answers:
    """Completes asyncio futures from other threads. Jobs that end at about the same time wake a loop once."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def expect(self) -> tuple[asyncio.Future[None], Tell]:
        """Return a future of the running event loop, and the function that completes it."""
        import asyncio

        loop = asyncio.get_running_loop()
        told: _ToldLoop | None = getattr(self._thread, "told", None)
        if told is None or told.loop is not loop:
            told = self._thread.told = _ToldLoop(loop)
        return told.expect()


class _ToldLoop:
    """An event loop, and the ended jobs that it has not been notified of yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ended: deque[tuple[asyncio.Future[None], BaseException | None]] = deque()
        self._is_waking = False

    def expect(self) -> tuple[asyncio.Future[None], Tell]:
        future: asyncio.Future[None] = self.loop.create_future()

        def tell(error: BaseException | None) -> None:
            self._ended.append((future, error))
            if not self._is_waking:
                self._is_waking = True
                self._wake()

        return future, tell

    def _wake(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._tell)
        except RuntimeError:  # the loop is closed
            self._ended.clear()

    def _tell(self) -> None:
        # Reset the flag before emptying the deque: a thread that saw True has already appended its future.
        self._is_waking = False
        while self._ended:
            future, error = self._ended.popleft()
            if future.done():  # canceled
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
