"""Tests of the runner's threads: shared batches, short and long jobs, cancellation, failure, closing."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from koe5_onnx import ProviderError
from koe5_onnx.engine.queue import Job
from koe5_onnx.engine.runner import Observer, Runner


class Graph:
    is_packed = True
    layout = "packed_cpu"


class FakeSession:
    """Blocks each batch until a test releases it. An embedding is the row's first id and its length."""

    graph = Graph()
    halves = False
    pad_id = 1
    counts_from_pad = True

    def __init__(self):
        self.batches: list[list[int]] = []
        self.began = threading.Semaphore(0)
        self.may_end = {"long": threading.Semaphore(0), "short": threading.Semaphore(0)}
        self.error: Exception | None = None

    def slots_per_row(self, lengths):
        return lengths

    def run(self, input_ids, position_ids, offsets):
        lengths = np.diff(offsets)
        self.batches.append(lengths.tolist())
        self.began.release()
        self.may_end["long" if lengths[0] > 128 else "short"].acquire()
        if self.error is not None:
            raise self.error
        return np.stack([input_ids[offsets[:-1]], lengths], axis=1).astype(np.float32)


class Recorder(Observer):
    """Records failures, and rejects embeddings with NaN."""

    def __init__(self):
        self.failures: list[BaseException] = []

    def batch_failed(self, error):
        self.failures.append(error)

    def faults_of(self, embeddings):
        fault = FloatingPointError("no number")
        return [fault if np.isnan(row).any() else None for row in embeddings]


class Asked:
    """A job and its outcome."""

    def __init__(self, *lengths, mark=7):
        self.ended = threading.Event()
        self.errors: list[BaseException | None] = []
        ids = [np.full(length, mark, np.int32) for length in lengths]
        out = np.zeros((len(ids), 2), np.float32)
        self.job = Job(ids, out, self._done, time.monotonic())

    def _done(self, error):
        self.errors.append(error)
        self.ended.set()

    def wait(self):
        assert self.ended.wait(10)
        return self.errors


@pytest.fixture
def fake():
    return FakeSession()


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def runner(fake, recorder):
    made = Runner(fake, max_batch_tokens=512, parallel_batches=1, observer=recorder)
    yield made
    fake.may_end["long"].release(1000)
    fake.may_end["short"].release(1000)
    made.close()


def began(fake):
    assert fake.began.acquire(timeout=10)


def test_requests_that_wait_together_share_a_batch(fake, runner):
    first, *others = (Asked(30, mark=mark) for mark in range(1, 5))
    runner.submit(first.job)
    began(fake)
    for one in others:
        runner.submit(one.job)
    fake.may_end["short"].release(2)
    for mark, one in enumerate((first, *others), start=1):
        assert one.wait() == [None]
        assert one.job.out.tolist() == [[mark, 30]]
    assert fake.batches == [[30], [30, 30, 30]]


def test_a_short_text_runs_with_a_long_one(fake, runner):
    bulk, query = Asked(512, 512), Asked(30)
    runner.submit(bulk.job)
    began(fake)
    runner.submit(query.job)
    began(fake)
    fake.may_end["short"].release()
    assert query.wait() == [None]
    assert not bulk.ended.is_set()
    fake.may_end["long"].release(2)
    assert bulk.wait() == [None]


@pytest.mark.parametrize("second", [30, 512], ids=["two short", "two long"])
def test_else_one_batch_runs_at_a_time(fake, runner, second):
    first, other = Asked(30 if second == 30 else 512), Asked(second)
    runner.submit(first.job)
    began(fake)
    runner.submit(other.job)
    assert not fake.began.acquire(timeout=0.2)
    fake.may_end["long"].release(2)
    fake.may_end["short"].release(2)
    assert other.wait() == [None]


def test_what_is_given_up_leaves_the_queue(fake, runner):
    first, gone = Asked(512), Asked(512, 512)
    runner.submit(first.job)
    began(fake)
    runner.submit(gone.job)
    runner.give_up(gone.job)
    assert runner.waiting_tokens == 0
    fake.may_end["long"].release()
    assert first.wait() == [None]
    assert not gone.ended.wait(0.1)
    assert fake.batches == [[512]]


def test_a_failed_batch_fails_its_requests_only(fake, runner, recorder):
    fake.error = RuntimeError("out of memory")
    failed = Asked(30, 512)
    runner.submit(failed.job)
    fake.may_end["long"].release()
    assert failed.wait() == [fake.error]
    assert runner.failure is fake.error
    assert recorder.failures == [fake.error]
    fake.error = None
    fake.may_end["long"].release(10)
    fake.may_end["short"].release(10)
    good = Asked(30)
    runner.submit(good.job)
    assert good.wait() == [None]
    assert runner.failure is None
    assert len(failed.errors) == 1


def test_closing_finishes_what_was_accepted(fake):
    runner = Runner(fake, max_batch_tokens=512, parallel_batches=1)
    accepted = [Asked(512) for _ in range(5)]
    for one in accepted:
        runner.submit(one.job)
    fake.may_end["long"].release(10)
    runner.close()
    assert all(one.errors == [None] for one in accepted)
    with pytest.raises(ProviderError, match="closed"):
        runner.submit(Asked(1).job)


def test_stopping_runs_nothing_more(fake):
    runner = Runner(fake, max_batch_tokens=512, parallel_batches=1)
    running, waiting = ask(runner, 512, 512), ask(runner, 512)
    began(fake)
    runner.stop()
    fake.may_end["long"].release(10)
    runner.join()
    assert fake.batches == [[512]]
    assert not running.ended.is_set()
    assert not waiting.ended.is_set()
    with pytest.raises(ProviderError, match="closed"):
        runner.submit(Asked(1).job)


def test_a_thread_that_waits_holds_no_job(fake, runner):
    asked = ask(runner, 30)
    job = weakref.ref(asked.job)
    fake.may_end["short"].release()
    assert asked.wait() == [None]
    del asked
    until(lambda: gc.collect() >= 0 and job() is None)


def test_a_batch_that_is_not_full_waits_for_more(fake):
    runner = Runner(fake, max_batch_tokens=512, parallel_batches=1, max_wait_s=60.0)
    runner.submit(Asked(100).job)
    assert not fake.began.acquire(timeout=0.1)
    runner.submit(Asked(*[100] * 5).job)
    began(fake)
    assert fake.batches == [[100] * 5]
    fake.may_end["short"].release(10)
    runner.close()


def test_an_embedding_that_is_no_number_fails_its_request_and_no_other(fake, runner, recorder):
    waiting = Asked(30)
    runner.submit(waiting.job)
    began(fake)
    bad, good = Asked(30, mark=np.iinfo(np.int32).max), Asked(30, mark=5)
    runner.submit(bad.job)
    runner.submit(good.job)
    run = fake.run

    def with_nan(*arrays):
        found = run(*arrays)
        found[found > 1e9] = np.nan
        return found

    fake.run = with_nan
    fake.may_end["short"].release(2)
    (error,) = bad.wait()
    assert isinstance(error, FloatingPointError)
    assert good.wait() == [None]
    assert good.job.out.tolist() == [[5, 30]]
    assert fake.batches == [[30], [30, 30]]
    assert runner.failure is error
    assert recorder.failures == [error]


def test_a_fault_of_our_own_ends_neither_the_thread_nor_the_request(fake, runner, monkeypatch):
    fake.may_end["short"].release(10)
    monkeypatch.setattr(Recorder, "job_started", lambda self, waited_s: 1 / 0)
    for _ in range(4):
        (error,) = ask(runner, 30).wait()
        assert isinstance(error, ZeroDivisionError)
    monkeypatch.undo()
    assert ask(runner, 30).wait() == [None]


def test_threads_that_could_run_nothing_sleep_on(fake, runner, monkeypatch):
    first = ask(runner, 30)
    began(fake)
    woken = []
    notify_all = runner._changed.notify_all
    monkeypatch.setattr(runner._changed, "notify_all", lambda: woken.append(1) or notify_all())
    others = [ask(runner, 30) for _ in range(5)]
    assert woken == []
    fake.may_end["short"].release(10)
    for one in (first, *others):
        assert one.wait() == [None]
    assert fake.batches == [[30], [30] * 5]


def test_closing_ends_the_threads_that_wait_during_a_running_batch(fake):
    runner = Runner(fake, max_batch_tokens=512, parallel_batches=2)
    running = ask(runner, 30)
    began(fake)
    closing = threading.Thread(target=runner.close)
    closing.start()
    fake.may_end["short"].release()
    closing.join(10)
    assert not closing.is_alive()
    assert running.wait() == [None]


def until(is_so):
    for _ in range(1000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("no event before the timeout")


def ask(runner, *lengths):
    asked = Asked(*lengths)
    runner.submit(asked.job)
    return asked
