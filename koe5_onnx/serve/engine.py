"""From a route's inputs to embeddings: tokenise in a thread, queue, wait for the answer or give up.

Lives in the event loop; runner.py's threads do the work.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from koe5_onnx import Embedder, Encoded, InputError, Tokens
from koe5_onnx.serve.inputs import Inputs, prepare
from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.queue import Job
from koe5_onnx.serve.refusals import BACKEND, INVALID, TIMEOUT, TOO_MANY_TOKENS, Refusal
from koe5_onnx.serve.runner import Runner
from koe5_onnx.serve.settings import Settings
from koe5_onnx.serve.tracing import Tracing

_BRIEF_CHARACTERS = 512
"""Requests up to that are tokenised in the event loop: 0.2 ms at most, where a thread's turn costs 0.1 ms."""
_SHORT_CHARACTERS = 16_384
"""Requests up to that have a thread of their own to be tokenised in: long ones do not hold them up."""
_PROBE_S = 1.5
"""Below the timeout of any probe in deploy/."""
_WARM_UP_TOKENS = (1, 16, 64)

_LOGGED_TEXTS, _LOGGED_CHARACTERS = 4, 100

T = TypeVar("T")


class Engine:
    """One opened artifact that many requests share.

    Args:
        embedder: Opened with one worker.
        settings: Limits and waiting.
        metrics: Told what happens.
        tracing: Told the same, request by request.
    """

    def __init__(self, embedder: Embedder, settings: Settings, metrics: Metrics, tracing: Tracing) -> None:
        self.embedder, self.settings, self.metrics = embedder, settings, metrics
        self.runner = Runner(
            embedder,
            settings.parallel_batches,
            settings.max_queue_tokens,
            settings.max_wait_ms / 1000,
            metrics,
        )
        self._tracing = tracing
        self._short, self._long = (
            ThreadPoolExecutor(1, f"koe5-tokenise-{kind}") for kind in ("short", "long")
        )
        self._done: deque[tuple[asyncio.Future[None], BaseException | None]] = deque()
        """Ended by a runner's thread, not told yet."""
        self._is_waking = False
        metrics.watch(lambda: self.runner.waiting_tokens)

    def warm_up(self) -> None:
        """Embed some texts, so that the first request finds everything loaded."""
        for words in _WARM_UP_TOKENS:
            self.embedder.embed_tokens(self.embedder.tokenize(["가 " * words]))

    def close(self) -> None:
        """Finish what was accepted."""
        self.runner.close()
        self._short.shutdown()
        self._long.shutdown()

    async def is_healthy(self) -> bool:
        """Whether embeddings work: the last batch did, or else a short text does now.

        One request whose embedding fails must not leave the server marked as failing when no other comes.
        """
        if self.runner.failure is None:
            return True
        try:
            async with asyncio.timeout(_PROBE_S):
                await self._run(self.embedder.tokenize(["가"]))
        except (Refusal, TimeoutError):
            return False
        return True

    async def embed(self, inputs: Inputs) -> Encoded:
        """Embed the inputs of one request.

        Raises:
            Refusal: They cannot be used, or the server has too much to do.
        """
        tokens, embeddings = await self.in_time(self._embed(inputs))
        truncated = tokens.full_lengths > self.embedder.contract.max_tokens
        # Sums of a few numbers are many times faster as lists.
        self.metrics.answered(tokens, inputs.prompt, sum(truncated.tolist()))
        return Encoded(embeddings, tokens.full_lengths, truncated)

    async def _embed(self, inputs: Inputs) -> tuple[Tokens, npt.NDArray[np.float32]]:
        with self._tracing.span("tokenise"):
            characters = inputs.characters
            tokens = await self.tokenised(
                lambda: self._tokens_of(inputs), characters, at_once=characters <= _BRIEF_CHARACTERS
            )
        return tokens, await self._run(tokens)

    async def in_time(self, work: Awaitable[T]) -> T:
        """The result of some work; give up what takes too long.

        Raises:
            Refusal: It does.
        """
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                return await work
        except TimeoutError:
            raise Refusal(
                TIMEOUT,
                f"no answer within {self.settings.timeout_s:g} s: send less at a time",
                retry_after_s=10,
            ) from None

    def notes(self, inputs: Inputs, encoded: Encoded) -> dict[str, Any]:
        """What the log says of a request: counts, and texts only where the operator asked for them."""
        found: dict[str, Any] = {
            "inputs": len(encoded.tokens),
            "tokens": sum(encoded.tokens.tolist()),
            "truncated": sum(encoded.truncated.tolist()),
            "prompt": inputs.prompt,
        }
        if self.settings.log_texts:
            found["texts"] = [text[:_LOGGED_CHARACTERS] for text in inputs.texts[:_LOGGED_TEXTS]]
        return found

    async def tokenised(self, work: Callable[[], T], characters: int, *, at_once: bool = False) -> T:
        """Tokenise in a thread, as it may take longer than the event loop may stand still.

        Args:
            work: What to run.
            characters: That it is about.
            at_once: It does not: run it here.

        Raises:
            Refusal: A text cannot be used.
        """
        start = time.monotonic()
        try:
            if at_once:
                return work()
            thread = self._short if characters <= _SHORT_CHARACTERS else self._long
            return await asyncio.get_running_loop().run_in_executor(thread, work)
        except InputError as error:
            raise Refusal(INVALID, str(error), param=None) from error
        finally:
            self.metrics.tokenised(time.monotonic() - start)

    def _tokens_of(self, inputs: Inputs) -> Tokens:
        tokens = prepare(self.embedder, inputs)
        if (total := sum(map(len, tokens.ids))) > self.settings.max_request_tokens:
            raise Refusal(
                TOO_MANY_TOKENS,
                f"the request has {total:,} tokens: expected at most {self.settings.max_request_tokens:,}; "
                "send fewer texts at a time",
                param=inputs.param,
            )
        return tokens

    async def _run(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()

        def done(error: BaseException | None) -> None:
            self._done.append((answer, error))
            # One wake-up of the event loop for all requests that a batch ends.
            if not self._is_waking:
                self._is_waking = True
                loop.call_soon_threadsafe(self._tell)

        out = np.empty((len(tokens.ids), self.embedder.dim), dtype=np.float32)
        job = Job(tokens.ids, out, done, time.monotonic())
        with self._tracing.job(job):
            self.runner.submit(job)
            try:
                await answer
            finally:
                self.runner.give_up(job)
        return out

    def _tell(self) -> None:
        """Wake those whose requests have ended."""
        # First: whoever saw it set has appended before, and is told below.
        self._is_waking = False
        while self._done:
            answer, error = self._done.popleft()
            if not answer.done():
                if error is None:
                    answer.set_result(None)
                else:
                    answer.set_exception(
                        Refusal(BACKEND, "the model failed on this request; the server's log says more")
                    )
