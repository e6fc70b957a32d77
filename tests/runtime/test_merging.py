"""What the calls of an AsyncEmbedder share, batches and the machine, and what not: errors, cancellation."""

from __future__ import annotations

import asyncio
import threading
import warnings

import numpy as np
from concurrent_calls import LINE, settled, started

from koe5_onnx import AsyncEmbedder, Embedder, InputError, TextTooLongError


def test_calls_that_wait_together_share_a_batch_and_one_alone_does_not_wait(embedder, gate_of):
    gate = gate_of(embedder)

    async def embed():
        asynchronous = AsyncEmbedder(embedder)
        first = asyncio.create_task(asynchronous.encode([LINE]))
        await gate.until_one_began()  # nobody else has called yet
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
            gate.let(3)  # the one in work, one in front where a call was tokenized first, the query's
            await query
            batches = len(gate.batches)
            for call in calls:
                call.cancel()
            gate.open()
            await asyncio.gather(*calls, return_exceptions=True)
            await asynchronous.close()
            return batches

        # The one in work, the query's, and of others at most one in front and one behind.
        assert asyncio.run(embed()) <= 4


def test_a_large_call_is_windows_of_the_same(artifact_path):
    texts = [f"{LINE} {number}" for number in range(5_000)]
    with Embedder.open(artifact_path, threads=1, graph="padded") as embedder:
        expected = embedder.encode_with_info(texts, "passage")

        async def embed():
            asynchronous = AsyncEmbedder(embedder)
            return await asyncio.gather(*(asynchronous.encode_with_info(texts, "passage") for _ in range(3)))

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

    # Of each of two calls one window that runs and one that is ready.
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
    assert sum(gate.batches) == 10, "a text of a call that failed ran"
    for one in found:
        np.testing.assert_array_equal(one, expected)


def test_a_batch_that_fails_is_told_to_its_callers_and_the_next_one_runs(embedder, monkeypatch):
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


def test_warnings_come_once_whatever_runs_together(embedder, text_of):
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
