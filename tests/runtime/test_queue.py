"""Fairness, batches and limits of the queue, without threads."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from koe5_onnx.engine import queue as queue_module
from koe5_onnx.engine.batching import padded_lengths
from koe5_onnx.engine.queue import EXPRESS_TOKENS, SHORT_TOKENS, BatchQueue, Job

LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=20)


def job_of(*lengths):
    ids = [np.zeros(length, np.int32) for length in lengths]
    return Job(ids, np.empty((len(ids), 2), np.float32), lambda error: None, 0.0)


def queue_of(*, is_packed=True, max_batch_tokens=512):
    return BatchQueue(
        max_batch_tokens, (lambda lengths: lengths) if is_packed else padded_lengths, is_packed=is_packed
    )


def drained(queue):
    batches = []
    while (batch := queue.take()) is not None:
        batches.append(batch)
    return batches


@given(st.lists(LENGTHS, min_size=1, max_size=8), st.booleans(), st.sampled_from([64, 512, 2048]))
def test_each_row_runs_once_within_the_budget(jobs, is_packed, budget):
    queue = queue_of(is_packed=is_packed, max_batch_tokens=budget)
    made = [job_of(*lengths) for lengths in jobs]
    for job in made:
        queue.add(job)
    assert queue.tokens == sum(map(sum, jobs))
    batches = drained(queue)
    ran = [(id(row.job), row.number) for batch in batches for row in batch.rows]
    assert sorted(ran) == sorted((id(job), number) for job in made for number in range(len(job.ids)))
    assert queue.tokens == 0
    for batch in batches:
        assert batch.slots <= budget or len(batch.rows) == 1
        assert len({row.tokens <= SHORT_TOKENS for row in batch.rows}) == 1
        assert is_packed or len({row.slots for row in batch.rows}) == 1


def test_a_query_behind_a_bulk_request_runs_next():
    queue = queue_of()
    queue.add(job_of(*[512] * 100))
    for _ in range(3):
        queue.take()
    query = job_of(30)
    queue.add(query)
    assert [row.job for row in queue.take().rows] == [query]


def test_two_bulk_requests_share_the_machine():
    queue = queue_of()
    first, second = job_of(*[512] * 10), job_of(*[512] * 10)
    queue.add(first)
    queue.add(second)
    order = [batch.rows[0].job for batch in drained(queue)]
    for end in range(1, 21):
        assert abs(order[:end].count(first) - order[:end].count(second)) <= 1


def test_a_late_request_does_not_catch_up_on_what_it_missed():
    queue = queue_of()
    first, late = job_of(*[512] * 10), job_of(*[512] * 10)
    queue.add(first)
    for _ in range(5):
        queue.take()
    queue.add(late)
    assert [batch.rows[0].job for batch in drained(queue)][:4].count(late) <= 2


def test_rows_of_a_request_run_longest_first_and_equal_ones_in_their_order():
    queue = queue_of(max_batch_tokens=64)
    queue.add(job_of(50, 60, 60, 10, 60))
    assert [[row.number for row in batch.rows] for batch in drained(queue)] == [[1], [2], [4], [0, 3]]


def test_what_is_given_up_never_runs():
    queue = queue_of()
    gone, kept = job_of(100, 200, 300), job_of(50)
    queue.add(gone)
    queue.add(kept)
    queue.give_up(gone)
    assert queue.tokens == 50
    assert [row.job for batch in drained(queue) for row in batch.rows] == [kept]
    assert queue.tokens == 0


def test_clients_that_come_and_go_do_not_fill_the_memory():
    queue = queue_of()
    kept = job_of(*[512] * 100)
    queue.add(kept)
    most = 0
    for _ in range(100):
        gone = job_of(*[200] * 1000)
        queue.add(gone)
        queue.give_up(gone)
        queue.give_up(gone)
        most = max(most, sum(map(len, queue._groups.values())))
    assert most < 6000
    assert queue.tokens == 100 * 512
    assert [row.number for batch in drained(queue) for row in batch.rows] == list(range(100))


@given(st.lists(st.tuples(LENGTHS, st.booleans(), st.integers(0, 3)), max_size=12))
def test_rows_are_counted_when_taken_and_canceled(steps):
    queue = queue_of()
    queue_module._MOST_GIVEN_UP, before = 5, queue_module._MOST_GIVEN_UP
    try:
        for lengths, is_given_up, batches in steps:
            job = job_of(*lengths)
            queue.add(job)
            for _ in range(batches):
                queue.take()
            if is_given_up:
                queue.give_up(job)
            rows = [one.row for waiting in queue._groups.values() for one in waiting]
            assert (queue._rows, queue._given_up) == (len(rows), sum(row.job.ended for row in rows))
            assert queue.tokens == sum(row.tokens for row in rows if not row.job.ended)
    finally:
        queue_module._MOST_GIVEN_UP = before


def test_few_short_texts_run_with_long_ones():
    queue = queue_of()
    queue.add(job_of(512, *[100] * 5))
    batch = queue.take(short_only=True)
    assert batch.is_short
    assert 0 < batch.tokens <= EXPRESS_TOKENS
    assert queue_of().take(short_only=True) is None
    long_only = queue_of()
    long_only.add(job_of(SHORT_TOKENS + 1))
    assert long_only.take(short_only=True) is None


def test_texts_of_new_calls_run_with_long_ones():
    queue = queue_of()
    mixed = job_of(512, *[100] * 5)
    queue.add(mixed)
    assert [row.tokens for row in queue.take().rows] == [512]
    assert queue.take(short_only=True) is None
    query = job_of(30, 40)
    queue.add(query)
    assert [row.job for row in queue.take(short_only=True).rows] == [query, query]
    assert queue.take(short_only=True) is None
    assert [row.job for batch in drained(queue) for row in batch.rows] == [mixed] * 5


def test_peek_says_whether_the_batch_is_full():
    queue = queue_of()
    assert queue.peek() is None
    queue.add(job_of(100))
    assert queue.peek()[1] is False
    queue.add(job_of(*[100] * 5))
    assert queue.peek()[1] is True
    assert len(queue.take().rows) == 5
