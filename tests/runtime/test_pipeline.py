"""Windows and parallel batches affect the order of execution, but not the results."""

import queue
import threading

import numpy as np
import pytest

from koe5_onnx import Embedder, EngineOptions, InputError, TextTooLongError
from koe5_onnx.engine import pipeline


@pytest.fixture
def texts(text_of):
    lengths = np.random.default_rng(3).integers(0, 90, 50)
    return [f"{number} {text_of(int(length))}" for number, length in enumerate(lengths)]


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr("koe5_onnx.embedder.WINDOW_TEXTS", 7)


@pytest.mark.parametrize("parallel_batches", [1, 2, 5, 100])
def test_parallel_batches_change_nothing(artifact_path, embedder, texts, parallel_batches):
    options = EngineOptions(threads=1, parallel_batches=parallel_batches, max_batch_tokens=100)
    with Embedder.open(artifact_path, options=options) as other:
        np.testing.assert_array_equal(other.encode(texts), embedder.encode(texts))


def test_windows_change_nothing(artifact_path, embedder, texts, small_windows):
    encoded = embedder.encode_with_info(texts)
    with Embedder.open(artifact_path, threads=1) as other:
        np.testing.assert_array_equal(encoded.embeddings, other.encode(texts))
        np.testing.assert_array_equal(encoded.tokens, other.count_tokens(texts))


def test_progress_over_windows(embedder, texts, small_windows):
    calls = []
    embedder.encode(texts, on_progress=lambda done, total: calls.append((done, total)))
    total = int(embedder.count_tokens(texts).sum())
    assert calls[-1] == (total, total)
    assert all(0.3 * total < guess < 3 * total for _, guess in calls)


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_ends_all_batches(artifact_path, texts, most, error):
    calls = []

    def fail(*_tokens):
        calls.append(threading.current_thread())
        raise error("stop")

    before = set(threading.enumerate())
    with (
        Embedder.open(artifact_path, threads=1, parallel_batches=most, max_batch_tokens=64) as embedder,
        pytest.raises(error, match="stop"),
    ):
        embedder.encode(texts, on_progress=fail)
    assert 1 <= len(calls) <= most
    assert set(threading.enumerate()) <= before


def test_bad_input_in_a_late_window_is_found_before_anything_runs(embedder, texts, small_windows):
    with pytest.raises(InputError, match="text 49 is not valid Unicode: it contains the lone surrogate"):
        embedder.encode([*texts[:49], "\ud800"], on_progress=lambda *_: pytest.fail("something ran"))


def test_an_overflow_error_in_a_late_window_too(artifact_path, texts, text_of, small_windows):
    with (
        Embedder.open(artifact_path, threads=1, overflow="error") as embedder,
        pytest.raises(TextTooLongError, match="first one is text 50"),
    ):
        embedder.encode([*texts, text_of(600)], on_progress=lambda *_: pytest.fail("something ran"))


def test_the_next_window_is_tokenized_while_one_is_used():
    """Tokenization is at most one window ahead, and in order."""
    started = []
    second = threading.Event()

    class Slow:
        def encode(self, texts):
            started.append(list(texts))
            if len(started) == 2:
                second.set()
            return list(texts)

    windows = pipeline.tokenize_ahead(Slow(), list(range(10)), 3)
    assert next(windows) == [0, 1, 2]
    assert second.wait(10)
    assert started == [[0, 1, 2], [3, 4, 5]]
    assert list(windows) == [[3, 4, 5], [6, 7, 8], [9]]


def test_windows_double_up_to_the_largest():
    class Unchanged:
        def encode(self, texts):
            return list(texts)

    sizes = [len(window) for window in pipeline.tokenize_ahead(Unchanged(), "abcdefghijklmn", 5, first=2)]
    assert sizes == [2, 4, 5, 3]
    assert list(pipeline.tokenize_ahead(Unchanged(), "abc", 2, first=9)) == [["a", "b"], ["c"]]
    assert list(pipeline.tokenize_ahead(Unchanged(), "", 2, first=1)) == []


def test_the_windows_may_be_closed_in_the_background_thread():
    """The garbage collector closes windows that a failed call did not use, and may run in any thread."""
    is_suspended = threading.Event()
    closed = queue.Queue()

    class Collecting:
        def encode(self, texts):
            if texts == [1]:
                is_suspended.wait(10)
                try:
                    closed.put(windows.close())
                except RuntimeError as error:
                    closed.put(error)
            return texts

    windows = pipeline.tokenize_ahead(Collecting(), [0, 1], 1)
    assert next(windows) == [0]
    is_suspended.set()
    assert closed.get(timeout=10) is None


def test_threads_are_divided_by_the_parallel_batches(artifact_path, monkeypatch):
    from koe5_onnx.engine.machine import Cores

    monkeypatch.setattr("koe5_onnx.engine.tuning.usable_cores", lambda: Cores(8, "eight"))
    for parallel_batches, threads in ((1, 8), (3, 2), (20, 1)):
        with Embedder.open(artifact_path, parallel_batches=parallel_batches) as embedder:
            assert embedder.session.threads == threads
