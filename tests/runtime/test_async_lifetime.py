"""Calls of an AsyncEmbedder that end by cancellation, by close, or with their event loop or process."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
import tolerances
from concurrent_calls import LINE, settled, started

from koe5_onnx import AsyncEmbedder, Embedder, ProviderError


@pytest.fixture
def new_threads():
    """Return a function that returns the threads of koe5-onnx that started in this test and are alive."""
    before = set(threading.enumerate())
    return lambda: [one for one in set(threading.enumerate()) - before if one.name.startswith("koe5-")]


@pytest.mark.parametrize("seed", [0])
def test_many_tasks_in_two_loops_with_cancellations_at_random(artifact_path, text_of, seed, new_threads):
    pool = [LINE, "", "서울", "The quick brown fox", text_of(200), text_of(700), f"{LINE} " * 100]
    with Embedder.open(artifact_path, threads=1, graph="padded", max_batch_tokens=128) as embedder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = {prompt: embedder.encode(pool, prompt) for prompt in (None, "query", "passage")}
        asynchronous, faults, answered = AsyncEmbedder(embedder), [], []

        async def client(chance: random.Random):
            for _ in range(10):
                rows = [chance.randrange(len(pool)) for _ in range(chance.choice([0, 1, 1, 1, 3, 20]))]
                prompt = chance.choice([None, "query", "passage"])
                limit_s = chance.choice([None, None, 0, 0.001, 0.01])
                try:
                    async with asyncio.timeout(limit_s):
                        found = await asynchronous.encode([pool[row] for row in rows], prompt)
                except TimeoutError:
                    continue
                answered.append(len(rows))
                if not np.array_equal(found, expected[prompt][rows]):
                    faults.append((rows, prompt))

        async def clients(number: int):
            await asyncio.gather(*(client(random.Random(f"{seed} {number} {one}")) for one in range(15)))

        other = threading.Thread(target=lambda: asyncio.run(clients(1)))
        other.start()
        asyncio.run(clients(0))
        other.join(60)
        assert not other.is_alive()
        assert faults == []
        assert len(answered) > 100
        assert asynchronous._threads.runner.waiting_tokens == 0
        asyncio.run(asynchronous.close())
    assert not new_threads()


def test_closing_lets_every_kind_of_call_end_and_takes_no_new_one(embedder, gate_of, new_threads):
    texts = [[LINE], [LINE] * 100, [LINE] * 4_000, ["서울"] * 4_500, ["서울"] * 4_500, ["서울"] * 4_500]
    gate = gate_of(embedder)

    async def embed():
        asynchronous = AsyncEmbedder(embedder)
        calls = started(asynchronous.encode(one) for one in texts)
        await settled()
        closings = started(asynchronous.close() for _ in range(2))
        while not asynchronous._closed:
            await asyncio.sleep(0.001)
        with pytest.raises(ProviderError, match="closed"):
            await asynchronous.encode([LINE])
        assert not any(closing.done() for closing in closings)
        gate.open()
        await asyncio.gather(*closings)
        return await asyncio.gather(*calls)

    assert [len(one) for one in asyncio.run(embed())] == list(map(len, texts))
    assert not new_threads()


def test_a_loop_that_ended_early_harms_no_other(embedder, gate_of):
    gate = gate_of(embedder)
    asynchronous = AsyncEmbedder(embedder)
    loop = asyncio.new_event_loop()
    left = [loop.create_task(asynchronous.encode([LINE])) for _ in range(3)]
    loop.run_until_complete(gate.until_one_began())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()

    async def embed():
        call = asyncio.create_task(asynchronous.encode([LINE]))
        await settled()
        gate.open()
        found = await call
        await asynchronous.close()
        return found

    assert asyncio.run(embed()).shape == (1, embedder.dim)
    assert not any(call.done() for call in left)
    for call in left:
        call._log_destroy_pending = False  # destroyed on purpose


def test_one_that_is_dropped_unclosed_leaves_nothing_behind(artifact_path, new_threads):
    embedder = Embedder.open(artifact_path, threads=1)
    asynchronous = AsyncEmbedder(embedder)
    asyncio.run(asynchronous.encode([LINE]))
    session = weakref.ref(embedder.session)
    del asynchronous, embedder
    for _ in range(1000):
        gc.collect()
        if session() is None and not new_threads():
            return
        time.sleep(0.01)
    raise AssertionError(f"still alive: {session()}, {new_threads()}")


def test_an_idle_or_a_busy_one_does_not_hold_up_the_end_of_the_process(run_python, artifact_path):
    code = """
import asyncio, sys
from koe5_onnx import AsyncEmbedder, Embedder
idle, busy = (AsyncEmbedder(Embedder.open(sys.argv[1], threads=1)) for _ in range(2))
async def main():
    await idle.encode(["가"])
    calls = [asyncio.create_task(busy.encode(["가 " * 100] * texts)) for texts in (4_000, 100_000)]
    await asyncio.sleep(0.3)
asyncio.run(main())
print("over")
"""
    done = run_python(code, artifact_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")


def _in_child(asynchronous: AsyncEmbedder, gate, answers) -> None:
    gate.open()

    async def embed():
        return await asyncio.gather(*(asynchronous.encode([LINE] * texts) for texts in (1, 100, 4_500)))

    found = asyncio.run(embed())
    asyncio.run(asynchronous.close())
    answers.send([one[0] for one in found])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_fork_in_the_middle_of_the_parents_calls(embedder, gate_of):
    expected = embedder.encode([LINE])[0]
    gate = gate_of(embedder)
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    async def embed():
        asynchronous = AsyncEmbedder(embedder)
        calls = started(asynchronous.encode([LINE] * texts) for texts in (1, 100, 4_500))
        await gate.until_one_began()
        child = context.Process(target=_in_child, args=(asynchronous, gate, sending))
        child.start()
        assert await asyncio.to_thread(receiving.poll, 60), "the child hangs"
        gate.open()
        await asyncio.gather(*calls)
        child.join(60)
        return child.exitcode

    assert asyncio.run(embed()) == 0
    assert min(one @ expected for one in receiving.recv()) >= tolerances.ALONE_COSINE_MIN
