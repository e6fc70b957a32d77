"""Between event loops and a Runner: threads to tokenize in, calls that can be given up, and their results.

AsyncEmbedder and the server share it. Any number of loops may use one of each at the same time. asyncio is
imported inside functions, since that takes 20 ms, which a caller without an event loop need not spend.
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
"""Texts up to that are tokenized in the event loop: 0.2 ms at most, where a thread's turn costs 0.1 ms."""
_SHORT_CHARACTERS = 16_384
"""Texts up to that have a thread of their own to be tokenized in: long ones do not hold them up."""

T = TypeVar("T")
Tell = Callable[[BaseException | None], None]
"""Ends what is awaited, with an error or well; called once, from any thread."""


class GivenUpError(Exception):
    """Ends a call that was given up; nobody waits for it."""


class Call:
    """The rows of one caller: submitted to a runner as one job after another, and given up at any time."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._job: Job | None = None
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._is_given_up = False
        self._error: BaseException | None = None

    def submit(self, tokens: Tokens, out: npt.NDArray[np.float32], done: Tell) -> Job:
        """Queue rows; `done` is called at their end.

        Raises:
            GivenUpError: The call was given up.
            QueueFullError: See `Runner.submit`.
            ProviderError: See `Runner.submit`.
        """
        job = Job(tokens.ids, out, done, time.monotonic())
        # Held until the runner has the job: otherwise it could be given up before it is there.
        with self._lock:
            if self._is_given_up:
                raise GivenUpError
            self._runner.submit(job)
            self._job = job
        return job

    def run_blocking(self, tokens: Tokens, out: npt.NDArray[np.float32]) -> None:
        """Run rows and wait for them in this thread."""
        self._ended.clear()
        self.submit(tokens, out, self._end)
        self._ended.wait()
        if self._error is not None:
            raise self._error

    def give_up(self) -> None:
        """Cancel what has not ended; without effect afterwards."""
        with self._lock:
            self._is_given_up = True
            if self._job is not None and not self._job.ended:
                self._runner.give_up(self._job)
        self._end(GivenUpError())

    def _end(self, error: BaseException | None) -> None:
        self._error = error
        self._ended.set()


class Tokenizing:
    """Threads to tokenize in, where that takes longer than an event loop may stand still."""

    def __init__(self) -> None:
        self._short, self._long = (
            ThreadPoolExecutor(1, f"koe5-tokenize-{kind}") for kind in ("short", "long")
        )

    async def run(self, work: Callable[[], T], characters: int, *, at_once: bool = False) -> T:
        """The result of some work.

        Args:
            work: What to run.
            characters: That it is about.
            at_once: Run it here.
        """
        if at_once:
            return work()
        import asyncio

        thread = self._short if characters <= _SHORT_CHARACTERS else self._long
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    def close(self) -> None:
        """Finish what was begun."""
        self._short.shutdown()
        self._long.shutdown()


class Answers:
    """Ends of jobs, told to the loops that wait for them: one wake-up of a loop for all that a batch ends."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def expect(self) -> tuple[asyncio.Future[None], Tell]:
        """What to await in the running loop, and what ends it."""
        import asyncio

        loop = asyncio.get_running_loop()
        told: _ToldLoop | None = getattr(self._thread, "told", None)
        if told is None or told.loop is not loop:
            told = self._thread.told = _ToldLoop(loop)
        return told.expect()


class _ToldLoop:
    """One event loop and the ends of jobs that it has not heard of yet."""

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
        except RuntimeError:  # the loop is closed: nobody waits there any more
            self._ended.clear()

    def _tell(self) -> None:
        # First: whoever saw it set has appended before, and is told below.
        self._is_waking = False
        while self._ended:
            future, error = self._ended.popleft()
            if future.done():  # given up
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
