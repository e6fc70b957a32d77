"""AsyncEmbedder returns the results of Embedder, and concurrent calls share batches and the queue fairly."""

from __future__ import annotations

import asyncio
import threading
import warnings

import numpy as np
import pytest
import tolerances
from concurrent_calls import LINE, settled, started

from koe5_onnx import AsyncEmbedder, Embedder, InputError, ProviderError, TextTooLongError

TEXTS = ["대한민국의 수도는 어디인가요?", "서울", "", "The quick brown fox"]


def test_the_methods_return_the_results_of_the_embedder(embedder):
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


@pytest.mark.parametrize(("own", "given"), [(1, None), (1, 2), (2, None)])
def test_many_callers_run_few_batches_at_a_time(artifact_path, gate_of, own, given):
    most = given or own
    with Embedder.open(artifact_path, threads=1, parallel_batches=own, max_batch_tokens=16) as embedder:
        expected = embedder.encode(TEXTS * 10)
        gate = gate_of(embedder)

        async def embed():
            asynchronous = AsyncEmbedder(embedder, parallel_batches=given)
            calls = started(asynchronous.encode([text]) for text in TEXTS * 10)
            while gate.running < most:
                await asyncio.sleep(0.001)
            gate.open()
            return await asyncio.gather(*calls)

        found = asyncio.run(embed())
    assert gate.most == most
    assert most < len(gate.batches) < len(found)
    cosines = (np.concatenate(found) * expected).sum(axis=1)
    assert cosines.min() >= tolerances.ALONE_COSINE_MIN


def test_calls_that_wait_together_share_a_batch_and_one_alone_does_not_wait(embedder, gate_of):
    gate = gate_of(embedder)

    async def embed():
        asynchronous = AsyncEmbedder(embedder)
        first = asyncio.create_task(asynchronous.encode([LINE]))
        await gate.until_one_began()  # no other call has started yet
        others = started(asynchronous.encode([LINE]) for _ in range(20))
        await settled()
        gate.open()
        return await asyncio.gather(first, *others)

    found = asyncio.run(embed())
    assert gate.batches == [1, 20]
    for one in found[1:]:
        np.testing.assert_array_equal(one, found[0])


def test_an_embedding_is_the_same_bits_alone_and_merged(artifact_path, gate_of, golden):
    with Embedder.open(artifact_path, threads=1, graph="padded") as embedder:
        texts = golden.texts[:40]
        alone = [embedder.encode_passages([text]) for text in texts]
        gate = gate_of(embedder)

        async def embed():
            asynchronous = AsyncEmbedder(embedder)
            calls = started(asynchronous.encode_passages([text]) for text in texts)
            await gate.until_one_began()
            gate.open()
            return await asyncio.gather(*calls)

        found = asyncio.run(embed())
    assert len(gate.batches) < len(texts)
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(alone))


def test_a_query_does_not_wait_for_the_texts_that_were_there_before(artifact_path, gate_of):
    with Embedder.open(artifact_path, threads=1, max_batch_tokens=64) as embedder:
        gate = gate_of(embedder)

        async def embed():
            asynchronous = AsyncEmbedder(embedder)
            calls = started(asynchronous.encode([LINE] * texts) for texts in (10_000, 3_000, 10_000, 10_000))
            await gate.until_one_began()
            query = asyncio.create_task(asynchronous.encode_queries(["서울"]))
            await settled()
            # The running batch, at most one batch of a call that was tokenized first, and the query's batch.
            gate.let(3)
            await query
            batches = len(gate.batches)
            for call in calls:
                call.cancel()
            gate.open()
            await asyncio.gather(*calls, return_exceptions=True)
            await asynchronous.close()
            return batches

        # The running batch, the query's batch, and at most one other batch before and one after the query's.
        assert asyncio.run(embed()) <= 4


def test_a_large_call_is_windows_of_the_same(artifact_path):
    texts = [f"{number}" for number in range(4_500)]
    with Embedder.open(artifact_path, threads=1, graph="padded") as embedder:
        expected = embedder.encode_with_info(texts, "passage")

        async def embed():
            asynchronous = AsyncEmbedder(embedder)
            return await asyncio.gather(*(asynchronous.encode_with_info(texts, "passage") for _ in range(2)))

        for found in asyncio.run(embed()):
            np.testing.assert_array_equal(found.embeddings, expected.embeddings)
            np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_few_large_calls_are_tokenized_ahead(embedder, monkeypatch, gate_of):
    gate = gate_of(embedder)
    windows = []
    encode = embedder._tokenizer.encode
    monkeypatch.setattr(embedder._tokenizer, "encode", lambda texts: windows.append(1) or encode(texts))

    async def embed():
        asynchronous = AsyncEmbedder(embedder)
        calls = started(asynchronous.encode(["서울"] * 20_000) for _ in range(6))
        await gate.until_one_began()
        await asyncio.sleep(0.2)
        ahead = len(windows)
        for call in calls:
            call.cancel()
        gate.open()
        await asyncio.gather(*calls, return_exceptions=True)
        await asynchronous.close()
        return ahead

    # Each of two calls has one running and one ready window.
    assert 1 <= asyncio.run(embed()) <= 4


def test_two_loops_share_a_batch(embedder, gate_of):
    gate = gate_of(embedder)
    asynchronous, found = AsyncEmbedder(embedder), []

    def loop():
        found.append(asyncio.run(asynchronous.encode([LINE])))

    async def embed():
        first = asyncio.create_task(asynchronous.encode([LINE]))
        await gate.until_one_began()
        threads = [threading.Thread(target=loop) for _ in range(2)]
        for thread in threads:
            thread.start()
        length = int(embedder.count_tokens([LINE])[0])
        while asynchronous._threads.runner.waiting_tokens < 2 * length:
            await asyncio.sleep(0.001)
        gate.open()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        return await first

    first = asyncio.run(embed())
    assert gate.batches == [1, 2]
    for one in found:
        np.testing.assert_array_equal(one, first)


def test_an_error_is_its_own_callers(artifact_path, text_of, gate_of):
    with Embedder.open(artifact_path, threads=1, overflow="error", graph="padded") as embedder:
        expected = embedder.encode([LINE])
        gate = gate_of(embedder)

        async def embed():
            asynchronous = AsyncEmbedder(embedder)
            good = started(asynchronous.encode([LINE]) for _ in range(5))
            bad = started(
                [
                    asynchronous.encode([LINE, text_of(600)]),
                    asynchronous.encode([LINE] * 4_500 + [text_of(600)]),
                    asynchronous.encode([LINE, "\ud800"]),
                    asynchronous.encode([LINE, 5]),
                    asynchronous.encode([LINE], "document"),
                    asynchronous.encode(LINE),
                ]
            )
            more = started(asynchronous.encode([LINE]) for _ in range(5))
            done = await asyncio.gather(*bad, return_exceptions=True)
            gate.open()
            return done, await asyncio.gather(*good, *more)

        errors, found = asyncio.run(embed())
    kinds = [TextTooLongError, TextTooLongError, InputError, InputError, InputError, TypeError]
    assert [type(error) for error in errors] == kinds
    assert sum(gate.batches) == 10, "texts of a failed call were embedded"
    for one in found:
        np.testing.assert_array_equal(one, expected)


def test_a_failed_batch_raises_in_its_callers_and_the_next_one_runs(embedder, monkeypatch):
    run = embedder.session.run
    failure = RuntimeError("out of luck")

    def failing(*arrays):
        raise failure

    async def embed():
        asynchronous = AsyncEmbedder(embedder)
        monkeypatch.setattr(embedder.session, "run", failing)
        calls = [
            asynchronous.encode([LINE]),
            asynchronous.encode([LINE]),
            asynchronous.encode([LINE] * 5_000),
        ]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        monkeypatch.setattr(embedder.session, "run", run)
        return errors, await asynchronous.encode([LINE])

    errors, found = asyncio.run(embed())
    assert errors == [failure] * 3
    np.testing.assert_array_equal(found, embedder.encode([LINE]))


def test_warnings_come_once_for_concurrent_calls(embedder, text_of):
    long_text = text_of(600)

    async def embed():
        asynchronous = AsyncEmbedder(embedder)
        calls = [asynchronous.encode_queries([long_text]) for _ in range(10)]
        calls += [asynchronous.encode_queries([f"query: {LINE}"]) for _ in range(10)]
        await asyncio.gather(*calls, asynchronous.encode_queries([*[LINE] * 4_200, f"query: {long_text}"]))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(embed())
    assert sorted(one.category.__name__ for one in caught) == ["DoublePromptWarning", "TruncationWarning"]


def test_a_canceled_call_stops_after_its_batch_and_a_waiting_one_never_runs(artifact_path, gate_of):
    with Embedder.open(artifact_path, threads=1, max_batch_tokens=8) as embedder:
        gate = gate_of(embedder)

        async def embed():
            asynchronous = AsyncEmbedder(embedder)
            running = asyncio.create_task(asynchronous.encode(TEXTS * 50))
            await gate.until_one_began()
            waiting = asyncio.create_task(asynchronous.encode(TEXTS))
            await asyncio.sleep(0)
            running.cancel()
            waiting.cancel()
            done = await asyncio.gather(running, waiting, return_exceptions=True)
            gate.open()
            await asynchronous.close()
            return done

        done = asyncio.run(embed())
    assert [type(one) for one in done] == [asyncio.CancelledError] * 2
    assert len(gate.batches) == 1


def test_a_context_closes_the_embedder_too(embedder):
    async def embed():
        async with AsyncEmbedder(embedder) as asynchronous:
            return await asynchronous.encode(["서울"])

    assert asyncio.run(embed()).shape == (1, embedder.dim)
    with pytest.raises(ProviderError, match="closed"):
        embedder.encode(["서울"])


def test_parallel_batches_below_one(embedder):
    with pytest.raises(InputError, match="parallel_batches is 0"):
        AsyncEmbedder(embedder, parallel_batches=0)


def test_a_literal_prompt(embedder):
    asynchronous = AsyncEmbedder(embedder)

    async def embed():
        with pytest.raises(InputError, match="prompt"):
            await asynchronous.encode(["가"], "query", prompt="query: ")
        return await asynchronous.encode(["가"], prompt="query: ")

    np.testing.assert_allclose(asyncio.run(embed()), embedder.encode_queries(["가"]), atol=1e-6, rtol=0)
