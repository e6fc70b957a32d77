"""`tune` stores its result for this machine and artifact; opening uses it for options that are not given."""

import itertools
import json
from dataclasses import replace

import pytest

from koe5_onnx import Artifact, Embedder, EngineOptions
from koe5_onnx.artifact import PACKED_CPU_GRAPH
from koe5_onnx.cli import main
from koe5_onnx.engine.graphs import Graph, choose
from koe5_onnx.engine.machine import Cores
from koe5_onnx.engine.tuning import (
    DEFAULT_BATCH_TOKENS,
    Arrangement,
    _best,
    _profile_of,
    arrange,
    choose_tuned,
    remembered,
    tune,
)

PADDED = EngineOptions(graph="padded", parallel_batches=None)


@pytest.fixture
def artifact(artifact_path, cache, monkeypatch):
    monkeypatch.setattr("koe5_onnx.engine.tuning.usable_cores", lambda: Cores(2, "two"))
    return Artifact.open(artifact_path)


@pytest.fixture
def clock(monkeypatch):
    """Return a function that sets the durations, in seconds, of the next measurements."""

    def set_seconds(seconds):
        times = itertools.chain.from_iterable((0.0, second) for second in seconds)
        monkeypatch.setattr("koe5_onnx.engine.tuning.time.perf_counter", lambda: next(times))

    return set_seconds


def test_nothing_is_measured_unasked(artifact, cache):
    assert remembered(artifact, PADDED) is None
    with Embedder.open(artifact.path, graph="padded") as embedder:
        assert (embedder.parallel_batches, embedder.session.threads) == (1, 2)
        assert embedder.max_batch_tokens == DEFAULT_BATCH_TOKENS
    assert not (cache / "profiles").exists()


@pytest.mark.parametrize(
    ("level", "layout", "offline"),
    [("amx", "packed_cpu", 2048), ("amx", "padded", 512), ("vnni", "packed_cpu", 512)],
)
def test_the_default_batch_depends_on_the_kernels(artifact, monkeypatch, level, layout, offline):
    """A queue with texts of several callers uses small batches, unless an option sets the size."""
    graph = Graph(artifact.graph, None, "", layout)
    monkeypatch.setattr("koe5_onnx.engine.tuning.choose", lambda *_: graph)
    monkeypatch.setattr("koe5_onnx.engine.tuning.kernels_level", lambda: level)
    arrangement, queued = arrange(artifact, EngineOptions())
    assert (arrangement.max_batch_tokens, queued) == (offline, 512)
    arrangement, queued = arrange(artifact, EngineOptions(max_batch_tokens=1024))
    assert (arrangement.max_batch_tokens, queued) == (1024, 1024)


def test_what_is_found_is_used(artifact, clock):
    # First one batch with two threads and budgets of 256 to 4096, then two batches with one thread each. The
    # second to last measurement is the fastest.
    clock([5.0, 4.0, 2.0, 4.0, 5.0, 5.0, 4.0, 3.0, 1.0, 5.0])
    profile = tune(artifact, PADDED, rounds=1)
    assert profile.best == Arrangement(2, 1, 2048, "padded")
    assert profile.one_at_a_time == Arrangement(1, 2, 1024, "padded")
    assert remembered(artifact, PADDED) == profile
    for parallel_batches, expected in ((1, (1, 2, 1024)), (None, (2, 1, 2048))):
        with Embedder.open(artifact.path, parallel_batches=parallel_batches, graph="padded") as embedder:
            found = (embedder.parallel_batches, embedder.session.threads, embedder.max_batch_tokens)
            assert found == expected
            # Larger batches than the default are not used for queues, because a query would wait for them.
            assert embedder.queue_batch_tokens == DEFAULT_BATCH_TOKENS
    with Embedder.open(artifact.path, options=PADDED, threads=1, max_batch_tokens=64) as embedder:
        assert (embedder.parallel_batches, embedder.session.threads, embedder.max_batch_tokens) == (2, 1, 64)


def test_what_is_given_stays_fixed(artifact, clock):
    clock([3.0, 2.0, 1.0, 2.0, 3.0])
    profile = tune(artifact, replace(PADDED, threads=1, parallel_batches=2), rounds=1)
    assert profile.best == profile.one_at_a_time == Arrangement(2, 1, 1024, "padded")
    assert len(profile.tokens_per_second) == 5


def test_of_equal_speeds_the_packed_graph_and_the_smaller_batch_win():
    medians = [
        (Arrangement(1, 2, 256, "padded"), 101.0),
        (Arrangement(1, 2, 512, "packed"), 99.0),
        (Arrangement(1, 2, 256, "packed"), 99.5),
        (Arrangement(2, 1, 256, "packed"), 100.0),
    ]
    assert _best(medians) == Arrangement(1, 2, 256, "packed")
    faster = Arrangement(2, 1, 512, "padded")
    assert _best([*medians, (faster, 110.0)]) == faster


@pytest.fixture
def rates(artifact, monkeypatch):
    """Return a function that sets the speed of each graph. Requires the fused kernels."""
    if not choose(artifact, EngineOptions()).is_packed:
        pytest.skip("the packed graph cannot run here")

    def set_rates(**rates):
        monkeypatch.setattr("koe5_onnx.engine.tuning._rate", lambda *given: rates[given[-1].graph])

    return set_rates


def test_the_faster_graph_is_remembered(artifact, rates, monkeypatch):
    rates(packed=1.0, padded=1.5)
    profile = tune(artifact, EngineOptions(parallel_batches=None), rounds=1)
    assert len(profile.tokens_per_second) == 10 + 2
    assert profile.best == profile.one_at_a_time == Arrangement(1, 2, DEFAULT_BATCH_TOKENS, "padded")
    with Embedder.open(artifact.path) as embedder:
        assert embedder.session.graph.file == artifact.graph
        assert embedder.session.graph.reason == "the padded graph, which is faster here (measured by tune)"
    with Embedder.open(artifact.path, graph="packed") as embedder:
        assert embedder.session.graph.is_packed
    best = remembered(artifact, EngineOptions(graph="packed")).best
    assert best == Arrangement(1, 2, 256, "packed")
    # The result without other options has only two arrangements of the padded graph.
    assert remembered(artifact, EngineOptions(graph="padded")) is None
    # With graph="padded", a job that bulk resumes uses the result that chose this graph.
    padded = EngineOptions(graph="padded", parallel_batches=None)
    assert arrange(artifact, padded) == arrange(artifact, replace(padded, graph="auto"))
    assert _profile_of(artifact, padded) == profile
    for name in ("kernels_level", "kernels_version"):
        with monkeypatch.context() as changed:
            changed.setattr(f"koe5_onnx.engine.tuning.{name}", lambda: "another")
            assert choose_tuned(artifact, EngineOptions()).is_packed
    rates(packed=1.5, padded=1.0)
    tune(artifact, EngineOptions(parallel_batches=None), rounds=1)
    with Embedder.open(artifact.path) as embedder:
        assert embedder.session.graph.is_packed


def test_an_artifact_without_a_packed_graph(artifact, monkeypatch):
    files = {name: file for name, file in artifact.manifest.files.items() if name != PACKED_CPU_GRAPH}
    padded = Artifact(artifact.path, replace(artifact.manifest, files=files))
    monkeypatch.setattr("koe5_onnx.engine.tuning._rate", lambda *_: 1.0)
    assert tune(padded, EngineOptions(), rounds=1).best.graph == "padded"
    assert "no packed graph" in choose_tuned(padded, EngineOptions()).reason


def test_the_stored_threads_are_used(artifact, monkeypatch):
    monkeypatch.setattr("koe5_onnx.engine.tuning._thread_counts", lambda: [2, 1])
    monkeypatch.setattr("koe5_onnx.engine.tuning.usable_cores", lambda: Cores(5, "five"))
    monkeypatch.setattr("koe5_onnx.engine.tuning._rate", lambda *given: given[-1].threads)
    assert tune(artifact, PADDED, rounds=1).best == Arrangement(2, 2, 256, "padded")
    assert arrange(artifact, PADDED)[0].threads == 2
    assert arrange(artifact, replace(PADDED, parallel_batches=3))[0].threads == 1
    assert arrange(artifact, replace(PADDED, parallel_batches=1))[0].threads == 5


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"best": 3}', '{"best": {"parallel_batches": 1}}'])
def test_a_damaged_note_is_ignored(artifact, clock, cache, damage):
    clock([1.0] * 10)
    tune(artifact, PADDED, rounds=1)
    (note,) = (cache / "profiles").iterdir()
    assert json.loads(note.read_text())
    note.write_text(damage)
    assert remembered(artifact, PADDED) is None


def test_another_machine_has_another_profile(artifact, clock, monkeypatch):
    clock([1.0] * 10)
    tune(artifact, PADDED, rounds=1)
    monkeypatch.setattr("koe5_onnx.engine.tuning.cpu_name", lambda: "another")
    assert remembered(artifact, PADDED) is None


def test_the_verb(artifact, capsys):
    assert main(["tune", str(artifact.path), "--rounds", "1", "--graph", "padded"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("tokens/s") == 10
    assert "best for throughput" in printed
    assert remembered(artifact, PADDED) is not None
