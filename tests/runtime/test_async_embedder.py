"""The Embedder for asyncio: the loop goes on, calls are bounded, cancelled ones stop, errors come through."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading

import numpy as np
import pytest
import tolerances

from koe5_onnx import AsyncEmbedder, Embedder, InputError, ProviderError, TextTooLongError

TEXTS = ["대한민국의 수도는 어디인가요?", "서울", "", "The quick brown fox"]


class Watched:
    """Stands before `session.run`: counts the batches, those that run at once, and can hold them up."""

    def __init__(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started, self.running, self.most = 0, 0, 0
        self.entered, self.go_on = threading.Event(), threading.Event()
        self._lock, self._run = threading.Lock(), embedder.session.run
        monkeypatch.setattr(embedder.session, "run", self)

    def __call__(self, *arrays):
        with self._lock:
            self.started += 1
            self.running += 1
            self.most = max(self.most, self.running)
        self.entered.set()
        assert self.go_on.wait(60)
        try:
            return self._run(*arrays)
        finally:
            with self._lock:
                self.running -= 1


async def entered(watched: Watched) -> None:
    assert await asyncio.to_thread(watched.entered.wait, 60)


def test_the_verbs_give_what_the_embedder_gives(embedder):
    async def embed():
        asynchronous = AsyncEmbedder(embedder)
        return (
            await asynchronous.encode_queries(TEXTS),
            await asynchronous.encode_passages(TEXTS),
            await asynchronous.encode(TEXTS),
            await asynchronous.encode_with_info(TEXTS, "query"),
        )

    queries, passages, plain, info = asyncio.run(embed())
    np.testing.assert_array_equal(queries, embedder.encode_queries(TEXTS))
    np.testing.assert_array_equal(passages, embedder.encode_passages(TEXTS))
    np.testing.assert_array_equal(plain, embedder.encode(TEXTS))
    np.testing.assert_array_equal(info.embeddings, queries)
    np.testing.assert_array_equal(info.tokens, embedder.count_tokens(TEXTS, "query"))


def test_the_loop_goes_on_while_a_batch_runs(embedder, monkeypatch):
    """The batch waits for the loop: embedding on the loop's own thread would never end."""
    watched = Watched(embedder, monkeypatch)

    async def embed():
        call = asyncio.create_task(AsyncEmbedder(embedder).encode(TEXTS))
        await entered(watched)
        assert not call.done()
        watched.go_on.set()
        return await call

    assert asyncio.run(embed()).shape == (len(TEXTS), embedder.dim)


@pytest.mark.parametrize(("own", "given"), [(1, None), (1, 2), (2, None)])
def test_many_callers_run_few_batches_at_a_time(artifact_path, monkeypatch, own, given):
    most = given or own
    with Embedder.open(artifact_path, threads=1, parallel_batches=own, max_batch_tokens=16) as embedder:
        expected = embedder.encode(TEXTS * 10)
        watched = Watched(embedder, monkeypatch)

        async def embed():
            asynchronous = AsyncEmbedder(embedder, parallel_batches=given)
            calls = [asyncio.create_task(asynchronous.encode([text])) for text in TEXTS * 10]
            while watched.running < most:
                await asyncio.sleep(0.001)
            watched.go_on.set()
            return await asyncio.gather(*calls)

        found = asyncio.run(embed())
    assert watched.most == most
    assert most < watched.started < len(found)
    cosines = (np.concatenate(found) * expected).sum(axis=1)
    assert cosines.min() >= tolerances.ALONE_COSINE_MIN


def test_a_query_runs_beside_a_page(embedder, monkeypatch):
    watched = Watched(embedder, monkeypatch)

    async def embed():
        asynchronous = AsyncEmbedder(embedder)
        page = asyncio.create_task(asynchronous.encode(["가 " * 200]))
        await entered(watched)
        query = asyncio.create_task(asynchronous.encode_queries(["서울"]))
        while watched.running < 2:
            await asyncio.sleep(0.001)
        watched.go_on.set()
        await asyncio.gather(page, query)

    asyncio.run(embed())
    assert watched.most == 2


def test_a_cancelled_call_stops_after_its_batch_and_a_waiting_one_never_runs(artifact_path, monkeypatch):
    with Embedder.open(artifact_path, threads=1, max_batch_tokens=8) as embedder:
        watched = Watched(embedder, monkeypatch)

        async def embed():
            asynchronous = AsyncEmbedder(embedder)
            running = asyncio.create_task(asynchronous.encode(TEXTS * 50))
            await entered(watched)
            waiting = asyncio.create_task(asynchronous.encode(TEXTS))
            await asyncio.sleep(0)
            running.cancel()
            waiting.cancel()
            done = await asyncio.gather(running, waiting, return_exceptions=True)
            watched.go_on.set()
            await asynchronous.close()
            return done

        done = asyncio.run(embed())
    assert [type(one) for one in done] == [asyncio.CancelledError] * 2
    assert watched.started == 1


def test_a_timeout_cancels(embedder, monkeypatch):
    watched = Watched(embedder, monkeypatch)

    async def embed():
        asynchronous = AsyncEmbedder(embedder)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asynchronous.encode(TEXTS)
        watched.go_on.set()
        return await asynchronous.encode(["서울"])

    assert asyncio.run(embed()).shape == (1, embedder.dim)


def test_errors_come_through(artifact_path, text_of):
    async def embed():
        async with AsyncEmbedder(Embedder.open(artifact_path, overflow="error")) as asynchronous:
            with pytest.raises(TypeError, match="one str"):
                await asynchronous.encode("서울")
            with pytest.raises(InputError, match="prompt_name is 'document'"):
                await asynchronous.encode(["서울"], "document")
            with pytest.raises(TextTooLongError):
                await asynchronous.encode_queries([text_of(600)])
        return asynchronous.embedder

    embedder = asyncio.run(embed())
    with pytest.raises(ProviderError, match="closed"):
        embedder.encode(["서울"])


def test_closing_waits_for_the_calls(embedder, monkeypatch):
    watched = Watched(embedder, monkeypatch)

    async def embed():
        asynchronous = AsyncEmbedder(embedder)
        calls = [asyncio.create_task(asynchronous.encode([text])) for text in TEXTS]
        await entered(watched)
        closing = asyncio.create_task(asynchronous.close())
        await asyncio.sleep(0)
        assert not closing.done()
        watched.go_on.set()
        await closing
        return await asyncio.gather(*calls)

    assert len(asyncio.run(embed())) == len(TEXTS)


def test_one_for_several_loops(embedder):
    asynchronous = AsyncEmbedder(embedder)

    async def embed():
        return await asyncio.gather(*(asynchronous.encode([text]) for text in TEXTS))

    first, second = asyncio.run(embed()), asyncio.run(embed())
    np.testing.assert_array_equal(first, second)


def test_parallel_batches_below_one(embedder):
    with pytest.raises(InputError, match="parallel_batches is 0"):
        AsyncEmbedder(embedder, parallel_batches=0)


def test_a_literal_prompt(embedder):
    async def embed():
        asynchronous = AsyncEmbedder(embedder)
        with pytest.raises(InputError, match="pass one of the two"):
            await asynchronous.encode(["가"], "query", prompt="query: ")
        return await asynchronous.encode(["가"], prompt="query: ")

    np.testing.assert_allclose(asyncio.run(embed()), embedder.encode_queries(["가"]), atol=1e-6, rtol=0)


def _in_child(asynchronous: AsyncEmbedder, answers) -> None:
    answers.send(asyncio.run(asynchronous.encode(TEXTS)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_after_a_fork(embedder):
    """The parent has used its threads, which the child does not have."""
    asynchronous = AsyncEmbedder(embedder)
    expected = asyncio.run(asynchronous.encode(TEXTS))
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(asynchronous, sending))
    child.start()
    assert receiving.poll(60), "the child hangs"
    np.testing.assert_array_equal(receiving.recv(), expected)
    child.join(60)
    assert child.exitcode == 0
