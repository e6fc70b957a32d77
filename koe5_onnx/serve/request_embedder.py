"""Embed the inputs of a request: tokenize, submit to the queue, wait for the result.

This code runs in the event loop. Long texts are tokenized in threads, and the threads of
koe5_onnx/engine/runner.py run the batches, as they do for an AsyncEmbedder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import Request

from koe5_onnx import Embedder, Encoded, InputError, ProviderError, Tokens
from koe5_onnx.engine.async_bridge import BRIEF_CHARACTERS, Answers, Call, Tokenizing
from koe5_onnx.engine.cache import Cache
from koe5_onnx.engine.runner import Runner
from koe5_onnx.serve.connection import unless_gone
from koe5_onnx.serve.inputs import InputReader, Inputs
from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.refusals import Reason, Refusal
from koe5_onnx.serve.routing import NOTES
from koe5_onnx.serve.settings import Settings
from koe5_onnx.serve.tracing import Tracing
from koe5_onnx.text.prompts import count_doubled

_PROBE_S = 1.5
"""Timeout of the health check's embedding, in seconds: shorter than the timeout of every probe in deploy/."""
_WARM_UP_TOKENS = (1, 16, 64)

_PIECES = 8
"""Number of large requests that share the queue. Each uses at most its share, and submits its texts in pieces
of that size. Without pieces, two requests of 300,000 tokens would fill the queue."""
_LOGGED_TEXTS, _LOGGED_CHARACTERS = 4, 100
_NOTICES = ("truncated", "averaged", "doubled_prompts", "ignored_fields")
"""Fields of a request's log line that are also headers of its response, if they are not 0."""

T = TypeVar("T")
Rows = Cache[npt.NDArray[np.float32]]
"""Embeddings by the bytes of a text's token ids. An entry takes 4 bytes per component and per token, and
about 300 for Python objects."""


class RequestEmbedder:
    """Embeds the inputs of all requests with one artifact."""

    def __init__(self, embedder: Embedder, settings: Settings, metrics: Metrics, tracing: Tracing) -> None:
        self.embedder, self.settings, self.metrics = embedder, settings, metrics
        self.inputs = InputReader(embedder, settings)
        self.runner = Runner(
            embedder.session,
            max_batch_tokens=embedder.queue_batch_tokens,
            parallel_batches=embedder.parallel_batches,
            max_wait_s=settings.max_wait_ms / 1000,
            observer=metrics,
        )
        self._tracing = tracing
        self._tokenizing, self._answers = Tokenizing(), Answers()
        metrics.waiting_tokens = lambda: self.runner.waiting_tokens
        self._cache: Rows = Cache(settings.cache_entries)
        self._piece_tokens = max(settings.max_queue_tokens // _PIECES, embedder.contract.max_tokens)
        self._reserved_tokens = 0

    def warm_up(self) -> None:
        """Embed a few texts, so that the first request is not slower than later ones."""
        for words in _WARM_UP_TOKENS:
            self.embedder.embed_tokens(self.embedder.tokenize(["가 " * words]))

    def close(self) -> None:
        """Finish the accepted requests, then stop the threads."""
        self.runner.close()
        self._tokenizing.close()

    async def is_healthy(self) -> bool:
        """Return True if the last batch succeeded, or if embedding a short text succeeds now.

        The retry keeps a server without traffic from staying unhealthy after a single failed request.
        """
        if self.runner.failure is None:
            return True
        try:
            async with asyncio.timeout(_PROBE_S):
                tokens = self.embedder.tokenize(["가"])
                await self._run(tokens, np.empty((1, self.embedder.dim), dtype=np.float32))
        except (Refusal, TimeoutError):
            return False
        return True

    async def answer(
        self, request: Request, inputs: Inputs, dim: int | None
    ) -> tuple[Encoded, dict[str, str]]:
        """Embed the inputs of a request, and cancel the work if the client disconnects.

        Returns:
            The embeddings, and the headers of `report`.

        Raises:
            Refusal: See `embed`.
            ClientGoneError: The client disconnected.
        """
        encoded, notes = await unless_gone(request.receive, self.embed(inputs, dim))
        return encoded, self.report(request, inputs, notes)

    def report(self, request: Request, inputs: Inputs, notes: dict[str, Any]) -> dict[str, str]:
        """Add notes to the log line of a request, and return headers that tell the client about them."""
        if inputs.ignored:
            self.metrics.ignored.inc(len(inputs.ignored))
            notes["ignored_fields"] = ", ".join(inputs.ignored)
        noted = request.scope[NOTES]
        noted |= notes
        headers = {f"x-{name.replace('_', '-')}": str(noted[name]) for name in _NOTICES if noted.get(name)}
        if headers:
            noted["user_agent"] = request.headers.get("user-agent", "")[:_LOGGED_CHARACTERS]
        return headers

    async def embed(self, inputs: Inputs, dim: int | None = None) -> tuple[Encoded, dict[str, Any]]:
        """Embed the inputs of one request, with `dim` components; None for all.

        Returns:
            The embeddings, and the fields of the request's log line: counts, and texts only with `log_texts`.

        Raises:
            Refusal: The inputs are invalid, or the server is overloaded, too slow or shutting down.
        """
        tokens, embeddings, reused = await self.in_time(self._embed(inputs))
        contract = self.embedder.contract
        truncated = self.embedder.is_truncated(tokens)
        # For a few numbers, sum() of a list is many times faster than NumPy's.
        notes: dict[str, Any] = {
            "inputs": len(tokens.ids),
            "tokens": sum(tokens.full_lengths.tolist()),
            "truncated": sum(truncated.tolist()),
            "averaged": len(tokens.further),
            "composed": sum(tokens.composed.tolist()),
            "doubled_prompts": count_doubled(inputs.texts, inputs.prompt, contract.prompts.values()),
            **reused,
            "prompt_name": inputs.prompt_name,
            "dim": dim or contract.dim,
        }
        self.metrics.answered(notes, tokens.total)
        if self.settings.log_texts:
            notes["texts"] = [text[:_LOGGED_CHARACTERS] for text in inputs.texts[:_LOGGED_TEXTS]]
        encoded = Encoded(embeddings, tokens.full_lengths, truncated, tokens.composed)
        return encoded.shortened(dim, contract), notes

    async def _embed(self, inputs: Inputs) -> tuple[Tokens, npt.NDArray[np.float32], dict[str, int]]:
        """Return the tokens, the embeddings, and how many texts were in the cache or repeated another one."""
        with self._tracing.span("tokenize"):
            tokens = await self.tokenized(lambda: self.inputs.tokens(inputs), inputs)
        out = np.empty((len(tokens.ids), self.embedder.dim), dtype=np.float32)
        with self.embedder.distinct(tokens, out) as (distinct, rows):
            cached = await self._look_up(distinct, rows)
        return tokens, out, {"cached": cached, "repeated": len(tokens.parts) - len(distinct.ids)}

    async def _look_up(self, tokens: Tokens, out: npt.NDArray[np.float32]) -> int:
        """Fill `out` from the cache and with new embeddings, and return how many were in the cache."""
        if not self.settings.cache_entries:
            await self._run(tokens, out)
            return 0
        keys = [ids.tobytes() for ids in tokens.ids]
        known = self._cache.get(keys)
        missing = [row for row, key in enumerate(keys) if key not in known]
        computed = np.empty((len(missing), self.embedder.dim), dtype=np.float32)
        await self._run(Tokens.of([tokens.ids[row] for row in missing]), computed)
        # A view would keep the embeddings of a whole request in memory.
        new = {keys[row]: embedding.copy() for row, embedding in zip(missing, computed, strict=True)}
        self._cache.put(new)
        out[:] = [known[key] if key in known else new[key] for key in keys]
        return len(known)

    async def in_time(self, work: Awaitable[T]) -> T:
        """Return the result of `work`, and cancel it after the timeout of a request.

        Raises:
            Refusal: The timeout expired.
        """
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                return await work
        except TimeoutError:
            message = f"no result within {self.settings.timeout_s:g} s. Send fewer texts per request"
            raise Refusal(Reason.TIMEOUT, message, retry_after_s=10) from None

    async def tokenized(self, work: Callable[[], T], inputs: Inputs) -> T:
        """Return the result of `work`, which tokenizes the inputs.

        Unless they are short, it runs in a thread, because it would block the event loop.

        Raises:
            Refusal: A text is invalid.
        """
        size = max(inputs.characters, len(inputs.texts))
        try:
            with self.metrics.tokenize.time():
                return await self._tokenizing.run(work, size, at_once=size <= BRIEF_CHARACTERS)
        except InputError as error:
            raise Refusal(Reason.INVALID, str(error)) from error

    async def _run(self, tokens: Tokens, out: npt.NDArray[np.float32]) -> None:
        """Embed the texts of a request into `out`, one piece after the other."""
        lengths = tokens.lengths.tolist()
        call = Call(self.runner)
        with self._reserved(min(sum(lengths), self._piece_tokens)):
            try:
                for rows in pieces(lengths, self._piece_tokens):
                    await self._run_piece(call, tokens[rows], out[rows])
            finally:
                call.give_up()

    @contextmanager
    def _reserved(self, tokens: int) -> Iterator[None]:
        """Reserve room in the queue for the pieces of a request. Without other requests, it always fits.

        Raises:
            Refusal: The queue is full.
        """
        most, reserved = self.settings.max_queue_tokens, self._reserved_tokens
        if reserved and reserved + tokens > most:
            found = f"open requests have reserved {reserved:,} of the {most:,} tokens of the queue"
            message = f"{found}, so this request with {tokens:,} tokens does not fit. Try again later"
            raise Refusal(Reason.OVERLOADED, message, retry_after_s=self.runner.drain_s())
        self._reserved_tokens += tokens
        try:
            yield
        finally:
            self._reserved_tokens -= tokens

    async def _run_piece(self, call: Call, tokens: Tokens, out: npt.NDArray[np.float32]) -> None:
        answer, tell = self._answers.expect()

        def done(error: BaseException | None) -> None:
            failed = Refusal(Reason.BACKEND, "the model failed on this request. See the server's log")
            tell(None if error is None else failed)

        try:
            job = call.submit(tokens, out, done)
        except ProviderError:
            message = "the server is shutting down. Retry on another instance"
            raise Refusal(Reason.STOPPING, message, retry_after_s=1) from None
        try:
            await answer
        finally:
            self._tracing.job(job)


def pieces(lengths: Sequence[int], most: int) -> Iterator[slice]:
    """Divide rows into slices of at most `most` tokens. A longer row has a slice of its own."""
    start = total = 0
    for number, length in enumerate(lengths):
        if number > start and total + length > most:
            yield slice(start, number)
            start, total = number, 0
        total += length
    if lengths:
        yield slice(start, len(lengths))
