"""Results reach their event loop; canceled futures and closed loops are ignored. Long texts use threads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from koe5_onnx.engine.async_bridge import Answers, Tokenizing


def test_an_abandoned_answer_delays_no_other():
    async def ask():
        answers = Answers()
        (gone, tell_gone), (well, tell_well), (ill, tell_ill) = (answers.expect() for _ in range(3))
        gone.cancel()
        for tell, error in ((tell_gone, None), (tell_well, None), (tell_ill, ValueError("ill"))):
            await asyncio.to_thread(tell, error)
        async with asyncio.timeout(30):
            assert await well is None
            with pytest.raises(ValueError, match="ill"):
                await ill

    asyncio.run(ask())


def test_a_batch_of_answers_wakes_the_loop_once(monkeypatch):
    async def ask():
        answers, loop, woken = Answers(), asyncio.get_running_loop(), []
        expected = [answers.expect() for _ in range(10)]
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda tell: woken.append(1) or wake(tell))
        thread = threading.Thread(target=lambda: [tell(None) for _, tell in expected])
        thread.start()
        thread.join()  # blocks the loop meanwhile
        await asyncio.gather(*(future for future, _ in expected))
        return woken

    assert asyncio.run(ask()) == [1]


def test_a_closed_loop_receives_nothing():
    answers = Answers()

    async def ask():
        return answers.expect()[1]

    asyncio.run(ask())(None)


def test_what_is_brief_runs_in_the_loop_and_the_rest_in_threads():
    async def run():
        tokenizing = Tokenizing()
        found = [
            await tokenizing.run(lambda: threading.current_thread().name, size, at_once=size < 10)
            for size in (1, 1_000, 1_000_000)
        ]
        tokenizing.close()
        return found

    here, short, long = asyncio.run(run())
    assert here == threading.current_thread().name
    assert short.startswith("koe5-tokenize-short")
    assert long.startswith("koe5-tokenize-long")
