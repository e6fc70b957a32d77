"""CUDA graphs without a GPU: the packed graph, translated for the CPU, with fixed shapes and addresses.

Nothing is captured. Buckets, filler tokens, IO binding, the thread and the check of results are those of the
runtime.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.seeded import Size, write_seeded_checkpoint
from koe5_export.simulated import SimulatedSession
from tolerances import SIMULATED_COSINE_MIN

from koe5_onnx import Artifact, EngineOptions, ProviderError
from koe5_onnx.engine import session
from koe5_onnx.engine.batching import Batch, pack_cuda
from koe5_onnx.engine.cuda import provider as cuda
from koe5_onnx.engine.cuda.graph_capture import CapturedGraphs
from koe5_onnx.engine.cuda.io_binding import FixedRun
from koe5_onnx.engine.session import Session

SHAPES = {
    "xlm-roberta": Size(2, 64, 4, 128, 1200, positions=130),
    "bert, cls": Size(2, 64, 2, 256, 1200, model_type="bert", positions=128, pooling="cls"),
}
ON_CPU = ("cpu", 0)


@pytest.fixture(scope="module", params=SHAPES)
def artifact(request, tmp_path_factory):
    """Return an fp16 artifact whose manifest also allows the CPU."""
    folder = tmp_path_factory.mktemp("captured")
    write_seeded_checkpoint(folder / "checkpoint", SHAPES[request.param])
    checkpoint = Checkpoint.open(folder / "checkpoint")
    made = export_checkpoint(checkpoint, folder / "fp16", ExportOptions(precision="fp16"))
    target = replace(made.manifest.target, devices=("cuda", "cpu"))
    return Artifact(made.path, replace(made.manifest, target=target))


@pytest.fixture(scope="module")
def ordinary(artifact):
    return SimulatedSession(artifact)


@pytest.fixture(scope="module")
def captured(artifact, ordinary):
    return captured_from(artifact, ordinary)


def captured_from(artifact, ordinary, expected=None):
    run = expected or (lambda batch: ordinary.run(*batch))
    return CapturedGraphs(onnxruntime, ordinary._open, run, artifact.manifest, ON_CPU)


def batch_of(artifact, lengths, seed=0):
    rng, manifest = np.random.default_rng(seed), artifact.manifest
    ids = [rng.integers(4, 1200, length).astype(np.int32) for length in lengths]
    counting = manifest.architecture.counts_from_pad
    return pack_cuda(ids, Batch(np.arange(len(ids)), 0), manifest.contract.pad_id, counts_from_pad=counting)


def least_cosine(a, b):
    return ((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()


@pytest.mark.parametrize("lengths", [[1], [15], [16], [100], [3, 5], [2] * 15, [60, 1, 30]])
def test_a_batch_in_its_bucket_gives_the_same_embeddings(artifact, ordinary, captured, lengths):
    batch = batch_of(artifact, lengths)
    bucket = captured.bucket_of(batch)
    assert bucket.holds(sum(lengths), len(lengths))
    found = captured.run(batch, bucket)
    assert (found.dtype, found.shape) == (np.float32, (len(lengths), 64))
    assert least_cosine(found, ordinary.run(*batch)) >= SIMULATED_COSINE_MIN


def test_each_run_uses_its_inputs_and_keeps_earlier_results(artifact, ordinary, captured):
    batches = [batch_of(artifact, [12], seed) for seed in range(5)]
    found = [captured.run(batch, captured.buckets[0]) for batch in batches]
    for one, batch in zip(found, batches, strict=True):
        assert least_cosine(one, ordinary.run(*batch)) >= SIMULATED_COSINE_MIN
    assert least_cosine(found[0], found[1]) < SIMULATED_COSINE_MIN


def test_several_threads_can_run_batches(artifact, ordinary, captured):
    batches = [batch_of(artifact, [2 + number % 40], number) for number in range(60)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda batch: captured.run(batch, captured.bucket_of(batch)), batches))
    for one, batch in zip(found, batches, strict=True):
        assert least_cosine(one, ordinary.run(*batch)) >= SIMULATED_COSINE_MIN


def test_opened_captured_and_run_on_one_thread_largest_first(artifact, ordinary, monkeypatch):
    """ONNX Runtime stores a captured graph per thread."""
    seen = []
    real = FixedRun.run

    def run(self, feeds):
        seen.append((threading.current_thread().name, len(feeds["input_ids"])))
        return real(self, feeds)

    monkeypatch.setattr(FixedRun, "run", run)
    made = captured_from(artifact, ordinary)
    made.close()
    assert {name for name, _ in seen} == {"koe5-cuda-graphs_0"}
    sizes = [bucket.tokens for bucket in made.buckets]
    assert [size for _, size in seen] == [*reversed(sizes), *sizes]


def test_each_shape_has_its_own_graph_id(artifact, ordinary, monkeypatch):
    told = []

    class RunOptions(onnxruntime.RunOptions):
        def add_run_config_entry(self, name, value):
            told.append((name, value))
            super().add_run_config_entry(name, value)

    monkeypatch.setattr(onnxruntime, "RunOptions", RunOptions)
    made = captured_from(artifact, ordinary)
    assert told == [("gpu_graph_id", str(number + 1)) for number in range(len(made.buckets))]


@pytest.mark.parametrize("wrong", [0, np.nan])
def test_a_replay_with_different_results_is_an_error(artifact, ordinary, wrong):
    """The wrong results are those of a captured graph that reads released memory."""

    def other(batch):
        rows = ordinary.run(*batch)
        rows[-1] = wrong
        rows[-1, 0] = 1
        return rows

    with pytest.raises(
        ProviderError, match=r"graph for 16 tokens returns different embeddings .* cosine (nan|0\.|-0\.)"
    ):
        captured_from(artifact, ordinary, other)


def test_an_error_of_onnxruntime_is_reported(artifact, ordinary):
    def fail():
        raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")

    before = threading.active_count()
    with pytest.raises(
        ProviderError, match=r"cannot capture CUDA graphs\. .*cuda_graphs=False.* failure 900"
    ):
        CapturedGraphs(onnxruntime, fail, ordinary.run, artifact.manifest, ON_CPU)
    assert threading.active_count() == before


class OnCpu(SimulatedSession):
    """A session on the CPU that uses `CapturedGraphs` like a session on a GPU."""

    def capture(self):
        self._captured = captured_from(self._artifact, self)


def test_a_session_replays_graphs_for_small_batches_only(artifact, ordinary, monkeypatch):
    small, large = batch_of(artifact, [7, 9]), batch_of(artifact, [100] * 9)
    session_ = OnCpu(artifact)
    np.testing.assert_array_equal(session_.run(*large), ordinary.run(*large))
    np.testing.assert_array_equal(session_.run(*small), ordinary.run(*small))
    session_.capture()
    replayed = []
    real = CapturedGraphs.run
    monkeypatch.setattr(
        CapturedGraphs,
        "run",
        lambda self, batch, bucket: replayed.append(bucket) or real(self, batch, bucket),
    )
    np.testing.assert_array_equal(session_.run(*large), ordinary.run(*large))
    assert replayed == []
    assert least_cosine(session_.run(*small), ordinary.run(*small)) >= SIMULATED_COSINE_MIN
    assert [bucket.tokens for bucket in replayed] == [32]
    session_.close()
    with pytest.raises(ProviderError, match="this session is closed"):
        session_.run(*small)


def test_the_capturing_session_has_the_same_provider_options(artifact, monkeypatch):
    given = []

    def made(ort, open_session, ordinary, manifest, device):
        open_session()
        given.append(device)

    opened = []
    monkeypatch.setattr(session, "CapturedGraphs", made)
    monkeypatch.setattr(Session, "_open", lambda self, options=None: opened.append(options))
    Session(artifact, EngineOptions(device="cuda:1", cuda_graphs=True, gpu_mem_limit=9))
    assert given == [("cuda", 1)]
    assert opened == [None, cuda.provider_options(1, 9) | {"enable_cuda_graph": "1"}]
