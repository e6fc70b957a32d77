"""Tests of the queue and the cache of the server, and of its reports of rejections and failures."""

from __future__ import annotations

import asyncio
import threading
import unicodedata

import numpy as np
import pytest
from tolerances import SERVED

from koe5_onnx.serve import Settings
from koe5_onnx.serve.inputs import Inputs
from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.refusals import Reason, Refusal
from koe5_onnx.serve.request_embedder import RequestEmbedder, pieces
from koe5_onnx.serve.tracing import Tracing

INPUTS = Inputs(["서울"] * 5, [], None, "", True, "input")


def requests_to(offline, **settings):
    return RequestEmbedder(offline, Settings(artifact="", **settings), Metrics(), Tracing())


LONG = Inputs([f"{number} " + "가 " * 600 for number in range(40)], [], None, "", True, "input")


def test_a_full_queue_says_when_to_retry(offline, monkeypatch):
    running, rejected, run = threading.Event(), threading.Event(), offline.session.run

    def wait_and_run(*arrays):
        running.set()
        assert rejected.wait(60)
        return run(*arrays)

    async def crowd(requests):
        first = asyncio.ensure_future(requests.embed(LONG))
        assert await asyncio.to_thread(running.wait, 60)
        with pytest.raises(
            Refusal, match="open requests have reserved 512 of the 600 tokens of the queue"
        ) as caught:
            await requests.embed(LONG)
        rejected.set()
        assert caught.value.reason is Reason.OVERLOADED
        assert int(caught.value.headers["retry-after"]) >= 1
        await requests.embed(INPUTS)
        await first
        await requests.embed(LONG)

    monkeypatch.setattr(offline.session, "run", wait_and_run)
    requests = requests_to(offline, max_queue_tokens=600)
    asyncio.run(crowd(requests))
    requests.close()


async def began(requests):
    """Wait until a request has rows in the queue."""
    while not requests.runner.waiting_tokens:
        await asyncio.sleep(0)


def test_a_large_request_is_served_in_pieces(offline, monkeypatch):
    """The queue holds one piece of the request at a time, so other requests do not wait for all of it."""
    requests = requests_to(offline, max_queue_tokens=16_384)
    queued = []
    submit = requests.runner.submit
    monkeypatch.setattr(
        requests.runner, "submit", lambda job: (submit(job), queued.append(sum(map(len, job.ids))))
    )
    texts = [f"{number} " + "가 " * (10 + 137 * number % 600) for number in range(300)]
    large = Inputs(texts, [], None, "", True, "input")

    async def both():
        first = asyncio.ensure_future(requests.embed(large))
        await began(requests)
        await requests.embed(INPUTS)
        assert not first.done(), "a short request waited for a large one"
        return (await first)[0]

    found = asyncio.run(both())
    requests.close()
    assert len(queued) > 20
    assert sum(queued) == np.minimum(found.tokens, 512).sum() + len(offline.tokenize(["서울"]).ids[0])
    assert max(queued) <= 16_384 // 8
    np.testing.assert_allclose(found.embeddings, offline.encode(texts), atol=SERVED, rtol=0)


def computed(requests, monkeypatch):
    """Return a list that gets the number of texts of each submitted job."""
    submit, numbers = requests.runner.submit, []
    monkeypatch.setattr(requests.runner, "submit", lambda job: (numbers.append(len(job.ids)), submit(job)))
    return numbers


def embed(requests, *texts, prompt=""):
    encoded, notes = asyncio.run(requests.embed(Inputs(texts, [], None, prompt, True, "input")))
    return encoded.embeddings, (notes["cached"], notes["repeated"])


def test_equal_texts_of_a_request_are_computed_once(offline, monkeypatch):
    requests = requests_to(offline)
    numbers = computed(requests, monkeypatch)
    found, reused = embed(requests, "서울", "가", "서울", unicodedata.normalize("NFD", "서울"), "")
    assert (numbers, reused) == ([3], (0, 2))
    assert embed(requests, "서울", "가")[1] == (0, 0), "without the option, nothing is kept"
    requests.close()
    np.testing.assert_allclose(found, offline.encode(["서울", "가", "서울", "서울", ""]), atol=SERVED, rtol=0)


def test_a_cached_embedding_is_the_same_bit_for_bit(offline, monkeypatch):
    """A cached embedding equals a new one, even if the other texts of their batches differ."""
    requests, without = requests_to(offline, cache_entries=100), requests_to(offline)
    numbers = computed(requests, monkeypatch)
    texts = [f"{number} " + "서울의 밤 " * (number % 40) for number in range(60)]
    at_first, reused = embed(requests, *texts, prompt="query: ")
    assert reused == (0, 0)
    order = [*range(59, -1, -2), 7, 7]
    later, reused = embed(requests, *[texts[number] for number in order], prompt="query: ")
    assert reused == (30, 2)
    mixed, reused = embed(requests, "새 글", texts[3], prompt="query: ")
    assert reused == (1, 0)
    assert embed(requests, texts[3], prompt="passage: ")[1] == (0, 0), "the prompt is part of the key"
    assert numbers == [60, 1, 1]
    alone = [embed(without, text, prompt="query: ")[0][0] for text in texts]
    requests.close()
    without.close()
    np.testing.assert_array_equal(at_first, alone)
    np.testing.assert_array_equal(later, at_first[order])
    np.testing.assert_array_equal(mixed[1], at_first[3])


def test_the_cache_forgets_what_was_not_used_for_the_longest_time(offline, monkeypatch):
    requests = requests_to(offline, cache_entries=2)
    numbers = computed(requests, monkeypatch)
    for text in ("가", "나", "가", "다", "가", "나"):
        embed(requests, text)
    embed(requests, "라", "마", "바")
    assert embed(requests, "라", "마", "바")[1] == (2, 0)
    requests.close()
    assert numbers == [1, 1, 1, 1, 3, 1]


def test_the_health_check_computes_whatever_is_cached(offline, monkeypatch):
    requests = requests_to(offline, cache_entries=10)
    embed(requests, "가")
    numbers = computed(requests, monkeypatch)
    requests.runner.failure = RuntimeError("out of luck")
    assert asyncio.run(requests.is_healthy())
    requests.close()
    assert numbers == [1]
    assert requests.runner.failure is None


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ([], []),
        ([5], [(0, 1)]),
        ([3, 3, 4, 11, 1, 1], [(0, 3), (3, 4), (4, 6)]),
        ([11, 11], [(0, 1), (1, 2)]),
    ],
)
def test_pieces(lengths, parts):
    assert [(rows.start, rows.stop) for rows in pieces(lengths, 10)] == parts


def test_a_server_that_shuts_down_sends_clients_to_another(offline):
    requests = requests_to(offline)
    requests.runner.close()
    with pytest.raises(Refusal, match="the server is shutting down") as caught:
        asyncio.run(requests.embed(INPUTS))
    assert caught.value.reason is Reason.STOPPING
    assert caught.value.headers["retry-after"] == "1"


def test_only_a_non_finite_row_is_a_fault():
    rows = np.zeros((3, 4), np.float32)
    rows[1, 2] = np.inf
    first, second, third = Metrics().faults_of(rows)
    assert (first, third) == (None, None)
    assert isinstance(second, FloatingPointError)


def test_a_failure_is_one_line_of_the_log(caplog):
    Metrics().batch_failed(RuntimeError("out of luck"))
    assert [record.getMessage() for record in caplog.records] == ["a batch failed: out of luck"]
