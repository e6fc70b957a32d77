"""From a route's inputs to embeddings: tokenize in a thread, queue, wait for the answer or give up.

Lives in the event loop; the threads of koe5_onnx/engine/runner.py do the work, as for an AsyncEmbedder.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from koe5_onnx import Embedder, Encoded, InputError, ProviderError, Tokens
from koe5_onnx.engine.async_bridge import BRIEF_CHARACTERS, Answers, Call, Tell, Tokenizing
from koe5_onnx.engine.queue import Job
from koe5_onnx.engine.runner import QueueFullError, Runner
from koe5_onnx.serve.inputs import Inputs, prepare
from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.refusals import (
    BACKEND,
    INVALID,
    OVERLOADED,
    STOPPING,
    TIMEOUT,
    TOO_MANY_TOKENS,
    Refusal,
)
from koe5_onnx.serve.settings import Settings
from koe5_onnx.serve.tracing import Tracing

_PROBE_S = 1.5
"""Below the timeout of any probe in deploy/."""
_WARM_UP_TOKENS = (1, 16, 64)

_LOGGED_TEXTS, _LOGGED_CHARACTERS = 4, 100

T = TypeVar("T")


class RequestEmbedder:
    """One opened artifact that many requests share.

    Args:
        embedder: Opened.
        settings: Limits and waiting.
        metrics: Told what happens.
        tracing: Told the same, request by request.
    """

    def __init__(self, embedder: Embedder, settings: Settings, metrics: Metrics, tracing: Tracing) -> None:
        self.embedder, self.settings, self.metrics = embedder, settings, metrics
        self.runner = Runner(
            embedder.session,
            max_batch_tokens=embedder.max_batch_tokens,
            parallel_batches=embedder.parallel_batches,
            max_queue_tokens=settings.max_queue_tokens,
            max_wait_s=settings.max_wait_ms / 1000,
            observer=metrics,
        )
        self._tracing = tracing
        self._tokenizing, self._answers = Tokenizing(), Answers()
        metrics.watch(lambda: self.runner.waiting_tokens)

    @property
    def default_prompt_name(self) -> str | None:
        """Prompt of requests that name none: the server's setting, else the contract's default."""
        return self.settings.default_prompt_name or self.embedder.contract.default_prompt_name

    def warm_up(self) -> None:
        """Embed some texts, so that the first request finds everything loaded."""
        for words in _WARM_UP_TOKENS:
            self.embedder.embed_tokens(self.embedder.tokenize(["가 " * words]))

    def close(self) -> None:
        """Finish what was accepted."""
        self.runner.close()
        self._tokenizing.close()

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

    async def embed(self, inputs: Inputs, dim: int | None = None) -> Encoded:
        """Embed the inputs of one request, and keep `dim` components (None: all), which were checked.

        Raises:
            Refusal: They cannot be used, or the server has too much to do.
        """
        tokens, embeddings = await self.in_time(self._embed(inputs))
        contract = self.embedder.contract
        truncated = tokens.full_lengths > contract.max_tokens
        # Sums of a few numbers are many times faster as lists.
        self.metrics.answered(tokens, inputs.prompt_name, sum(truncated.tolist()))
        return Encoded(embeddings, tokens.full_lengths, truncated, tokens.composed).shortened(dim, contract)

    async def _embed(self, inputs: Inputs) -> tuple[Tokens, npt.NDArray[np.float32]]:
        with self._tracing.span("tokenize"):
            characters = inputs.characters
            tokens = await self.tokenized(
                lambda: self._tokens_of(inputs), characters, at_once=characters <= BRIEF_CHARACTERS
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
            "composed": sum(encoded.composed.tolist()),
            "prompt_name": inputs.prompt_name,
            "dim": encoded.embeddings.shape[1],
        }
        if self.settings.log_texts:
            found["texts"] = [text[:_LOGGED_CHARACTERS] for text in inputs.texts[:_LOGGED_TEXTS]]
        return found

    async def tokenized(self, work: Callable[[], T], characters: int, *, at_once: bool = False) -> T:
        """Tokenize in a thread, as it may take longer than the event loop may stand still.

        Args:
            work: What to run.
            characters: That it is about.
            at_once: It does not: run it here.

        Raises:
            Refusal: A text cannot be used.
        """
        start = time.monotonic()
        try:
            return await self._tokenizing.run(work, characters, at_once=at_once)
        except InputError as error:
            raise Refusal(INVALID, str(error), param=None) from error
        finally:
            self.metrics.tokenized(time.monotonic() - start)

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
        answer, tell = self._answers.expect()

        def done(error: BaseException | None) -> None:
            failed = Refusal(BACKEND, "the model failed on this request; the server's log says more")
            tell(None if error is None else failed)

        out = np.empty((len(tokens.ids), self.embedder.dim), dtype=np.float32)
        call = Call(self.runner)
        try:
            job = self._submit(call, tokens, out, done)
            with self._tracing.job(job):
                await answer
        finally:
            call.give_up()
        return out

    def _submit(self, call: Call, tokens: Tokens, out: npt.NDArray[np.float32], done: Tell) -> Job:
        try:
            return call.submit(tokens, out, done)
        except QueueFullError as full:
            raise Refusal(
                OVERLOADED,
                f"{full}: expected at most {self.settings.max_queue_tokens:,}, this request's among them; "
                "try again later",
                retry_after_s=full.drain_s,
            ) from None
        except ProviderError:
            raise Refusal(
                STOPPING, "the server is shutting down; retry on another instance", retry_after_s=1
            ) from None
