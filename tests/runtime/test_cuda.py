"""CUDA without a GPU: a mocked driver, messages about missing parts, memory errors, and `tune`."""

from __future__ import annotations

import ctypes
import sys
import types
import warnings
from dataclasses import replace

import numpy as np
import pytest

from koe5_onnx import (
    Artifact,
    Embedder,
    EngineOptions,
    OutOfMemoryError,
    ProviderError,
    SmallerBatchWarning,
)
from koe5_onnx.artifact import Target
from koe5_onnx.engine import tuning
from koe5_onnx.engine.cuda import provider as cuda
from koe5_onnx.engine.cuda.provider import Driver, Gpu
from koe5_onnx.engine.providers import import_onnxruntime
from koe5_onnx.engine.session import Session

UNTUNED = EngineOptions(device="cuda", parallel_batches=None)
H200 = Gpu("NVIDIA H200", 150_000_000_000, (9, 0))
GPU_WHEEL = "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()
ARENA_FULL = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running BiasGelu node. "
    "Name:'layer.3.gelu' Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate "
    "memory for requested buffer of size 939524096"
)


class FakeDriver:
    """A fake libcuda for `ask_driver`."""

    def __init__(self, gpus=(H200,), version=13000, init=0):
        self._gpus, self._version, self._init = gpus, version, init

    def cuInit(self, flags):  # noqa: N802 - NVIDIA's names
        return self._init

    def cuGetErrorString(self, code, words):  # noqa: N802
        words._obj.value = b"no CUDA-capable device is detected"

    def cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = self._version

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = len(self._gpus)

    def cuDeviceGet(self, device, number):  # noqa: N802
        device._obj.value = number

    def cuDeviceGetName(self, name, length, device):  # noqa: N802
        name.value = self._gpus[device.value].name.encode()

    def cuDeviceTotalMem_v2(self, memory, device):  # noqa: N802
        memory._obj.value = self._gpus[device.value].memory_bytes

    def cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        value._obj.value = self._gpus[device.value].capability[attribute - 75]


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "find_driver", lambda: Driver("13.0", [H200]))


@pytest.fixture
def for_cuda(artifact_path):
    """Return the tiny artifact, changed to also target CUDA."""
    import dataclasses

    artifact = Artifact.open(artifact_path)
    target = Target(("cpu", "cuda"), (), "")
    return dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, target=target))


def test_a_driver_and_its_gpus():
    t4 = Gpu("Tesla T4", 16_000_000_000, (7, 5))
    assert cuda.ask_driver(FakeDriver((H200, t4), 12080)) == Driver("12.8", [H200, t4])


def test_a_driver_that_does_not_start():
    found = cuda.ask_driver(FakeDriver(init=100))
    assert found == (
        "the NVIDIA driver cannot be initialized: cuInit returned 100 (no CUDA-capable device is detected)"
    )


def test_a_driver_without_gpus():
    assert "finds no GPU; check CUDA_VISIBLE_DEVICES" in cuda.ask_driver(FakeDriver(()))


def test_no_driver(monkeypatch):
    monkeypatch.setattr(cuda, "_DRIVER", "libnone-such.so.1")
    assert "no NVIDIA driver was found" in cuda.find_driver()
    with pytest.raises(ProviderError, match=r"CUDA cannot be used: no NVIDIA driver .*libnone-such\.so\.1"):
        cuda.require_gpu(0)


def test_a_gpu_out_of_range(one_gpu):
    assert cuda.require_gpu(0) == H200
    with pytest.raises(
        ProviderError, match=r"'cuda:1', but the number of GPUs is 1: expected at most 'cuda:0'"
    ):
        cuda.require_gpu(1)


def onnxruntime_that(opens_on="CPUExecutionProvider", folder="."):
    """Return a fake of the GPU wheel that opens every session on `opens_on`."""
    ort = types.ModuleType("onnxruntime")
    real = import_onnxruntime()
    ort.__version__, ort.__file__ = "1.31.1", f"{folder}/__init__.py"
    ort.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    ort.SessionOptions, ort.GraphOptimizationLevel = real.SessionOptions, real.GraphOptimizationLevel
    ort.preload_dlls = lambda: sys.stdout.write("Failed to load libcublas.so.13")
    ort.given = []

    class InferenceSession:
        def __init__(self, source, options, providers, enable_fallback):
            ort.given.append(providers)

        def get_providers(self):
            return [opens_on]

    ort.InferenceSession = InferenceSession
    return ort


def test_a_library_missing_is_named(for_cuda, one_gpu, monkeypatch, tmp_path, capsys):
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi/libonnxruntime_providers_cuda.so").touch()
    words = "libcublasLt.so.13: cannot open shared object file: No such file or directory"

    def fail(name):
        raise OSError(words)

    ort = onnxruntime_that(folder=tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", ort)
    monkeypatch.setattr(ctypes, "CDLL", fail)
    with pytest.raises(
        ProviderError,
        match=rf"opened CPUExecutionProvider: a library is missing \({words}\)\. Run pip install .*\[cuda",
    ):
        Session(for_cuda, EngineOptions(device="cuda", graph="padded", gpu_mem_limit=10**9))
    # Preloading reports missing libraries on stdout, which may receive embeddings.
    assert capsys.readouterr().out == ""
    ((provider, options),) = ort.given[0]
    assert provider == "CUDAExecutionProvider"
    assert options == cuda.provider_options(0, 10**9)


def test_what_is_no_missing_library_is_left_to_onnxruntime(tmp_path):
    (tmp_path / "capi").mkdir()
    ort = onnxruntime_that(folder=tmp_path)
    assert cuda.missing_library(ort) is None
    (tmp_path / "capi/libonnxruntime_providers_cuda.so").write_text("no library")
    assert cuda.missing_library(ort) is None
    assert "koe5-onnx doctor" in cuda.why_on_the_cpu(ort)


def test_without_a_driver_onnxruntime_is_not_even_asked(for_cuda, monkeypatch):
    ort = onnxruntime_that()
    monkeypatch.setitem(sys.modules, "onnxruntime", ort)
    monkeypatch.setattr(cuda, "find_driver", lambda: "no NVIDIA driver was found")
    with pytest.raises(ProviderError, match="no NVIDIA driver was found"):
        Session(for_cuda, EngineOptions(device="cuda:1"))
    assert ort.given == []


@pytest.mark.skipif(not GPU_WHEEL, reason="the CPU wheel is installed")
@pytest.mark.skipif(isinstance(cuda.find_driver(), Driver), reason="this machine has a GPU")
def test_the_gpu_wheel_without_a_driver(for_cuda):
    with pytest.raises(ProviderError, match=r"no NVIDIA driver was found .*libcuda\.so\.1"):
        Session(for_cuda, EngineOptions(device="cuda"))


@pytest.mark.skipif(not GPU_WHEEL, reason="the CPU wheel is installed")
@pytest.mark.skipif(isinstance(cuda.find_driver(), Driver), reason="this machine has a GPU")
def test_the_gpu_wheel_without_cuda(for_cuda, one_gpu):
    """With a driver but without CUDA, the message names the real wheel's first missing library."""
    with pytest.raises(ProviderError, match=r"a library is missing \(lib\w+\.so\.\d+: cannot open"):
        Session(for_cuda, EngineOptions(device="cuda"))


def test_options_of_the_provider():
    assert cuda.provider_options(1, None) == {
        "device_id": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_skip_layer_norm_strict_mode": "1",
        "use_tf32": "0",
    }
    first = cuda.provider_options(0, 5)
    assert first["gpu_mem_limit"] == "5"
    assert "device_id" not in first


@pytest.mark.parametrize(
    "message",
    [
        ARENA_FULL,
        "BFCArena::AllocateRawInternal Available memory of 346 is smaller than requested bytes of 945041920",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc((void**)&p, size);",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&handle);",
    ],
)
def test_messages_of_too_little_memory(message):
    assert cuda.is_out_of_memory(RuntimeError(message))
    assert not cuda.is_out_of_memory(RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got: 3"))


class SmallMemory:
    """A loaded graph on a device with memory for only `tokens` tokens."""

    def __init__(self, real, tokens):
        self.real, self.tokens, self.runs = real, tokens, []

    def run(self, names, feeds):
        size = feeds["input_ids"].size
        self.runs.append(size)
        if size > self.tokens:
            raise RuntimeError(ARENA_FULL)
        return self.real.run(names, feeds)


@pytest.fixture
def texts(text_of):
    # Different texts, because equal ones are embedded once.
    return [f"{number:03} {text_of(number % 8 * 8)}" for number in range(64)]


def small(embedder, tokens):
    memory = SmallMemory(embedder.session._ort, tokens)
    embedder.session._ort = memory
    return memory


@pytest.mark.parametrize("graph", ["padded", "auto"])
def test_too_little_memory_halves_the_batches_once(artifact_path, texts, graph):
    with Embedder.open(artifact_path, threads=1, graph=graph, max_batch_tokens=600) as embedder:
        expected = embedder.encode(texts)
        memory = small(embedder, 400)
        with pytest.warns(
            SmallerBatchWarning, match=r"split in half, because a batch of .* tokens"
        ) as warned:
            found = embedder.encode(texts)
        assert len(warned) == 1
        assert sum(size > 400 for size in memory.runs) == 1
        np.testing.assert_array_equal(found, expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(embedder.encode(texts), expected)


def test_halves_that_do_not_fit_are_an_error(artifact_path, texts):
    with Embedder.open(artifact_path, threads=1, max_batch_tokens=600) as embedder:
        small(embedder, 100)
        with (
            pytest.warns(SmallerBatchWarning),
            pytest.raises(OutOfMemoryError, match=r"smaller max_batch_tokens.*requested buffer of size"),
        ):
            embedder.encode(texts)


def test_one_text_cannot_be_halved(artifact_path):
    with Embedder.open(artifact_path, threads=1) as embedder:
        small(embedder, 1)
        with pytest.raises(OutOfMemoryError, match="does not fit into the memory of CPUExecutionProvider"):
            embedder.encode(["하나 둘"])
        assert not embedder.session.halves


def test_a_graph_that_needs_cudnn_says_so(artifact_path):
    words = "cuDNN is unavailable or disabled for CUDA Execution Provider: dlopen failed for libcudnn.so"

    class NoCudnn:
        def run(self, names, feeds):
            raise RuntimeError(f"[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : {words}")

    with Embedder.open(artifact_path, threads=1) as embedder:
        embedder.session._ort = NoCudnn()
        with pytest.raises(
            ProviderError, match=r"requires cuDNN\. Run pip install .*does not require it.*dlopen failed"
        ) as found:
            embedder.encode(["하나"])
        assert not isinstance(found.value, OutOfMemoryError)


def test_another_error_stays_what_it_is(artifact_path):
    with Embedder.open(artifact_path, threads=1, graph="padded") as embedder:
        with pytest.raises(Exception, match="INVALID_ARGUMENT") as found:
            embedder.session.run(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32))
        assert not isinstance(found.value, ProviderError)


@pytest.mark.parametrize("graph", ["auto", "packed"])
def test_graphs_are_captured_of_the_packed_graph(artifact_path, one_gpu, graph):
    """The tiny artifact has no packed graph for CUDA, and its padded graph is not captured instead."""
    with pytest.raises(ProviderError, match=r"the packed graph cannot run: .*no packed graph for CUDA"):
        Embedder.open(artifact_path, device="cuda", graph=graph, cuda_graphs=True)


@pytest.fixture
def tuned(for_cuda, one_gpu, monkeypatch, tmp_path):
    """Return a function that runs `tune` on a mocked GPU.

    Its argument `seconds` maps an arrangement to its duration, or to None if it does not fit into memory.
    """
    monkeypatch.setenv("KOE5_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "Session", lambda artifact, options: _NoSession())
    monkeypatch.setattr(tuning, "require_gpu", cuda.require_gpu)

    def play(artifact, seconds):
        def rate(artifact, session, tokens, one):
            taken = seconds(one)
            if taken is None:
                raise OutOfMemoryError("does not fit")
            return int(tokens.lengths.sum()) / taken

        monkeypatch.setattr(tuning, "_rate", rate)
        monkeypatch.setattr(tuning, "_run", lambda *_: None)
        return tuning.tune(artifact, UNTUNED, rounds=2)

    return play


class _NoSession:
    def close(self):
        pass


def test_tune_chooses_parallel_batches_and_budget(for_cuda, tuned):
    best = {(2, 65536): 1.0, (1, 32768): 1.5}
    profile = tuned(for_cuda, lambda one: best.get((one.parallel_batches, one.max_batch_tokens), 4.0))
    assert (profile.best.parallel_batches, profile.best.max_batch_tokens) == (2, 65536)
    assert len(profile.tokens_per_second) == 2 * 4
    found, _ = tuning.arrange(for_cuda, EngineOptions(device="cuda"))
    assert (found.parallel_batches, found.max_batch_tokens) == (1, 32768)
    assert tuning.arrange(for_cuda, replace(UNTUNED, max_batch_tokens=7))[0].max_batch_tokens == 7


def test_tune_leaves_out_what_does_not_fit(for_cuda, tuned):
    profile = tuned(for_cuda, lambda one: 1.0 if one.max_batch_tokens < 65536 else None)
    assert {one.max_batch_tokens for one, _ in profile.tokens_per_second} == {16384, 32768}
    with pytest.raises(OutOfMemoryError):
        tuned(for_cuda, lambda one: None)


def test_untuned_and_on_another_gpu(for_cuda, tuned, monkeypatch):
    default, queued = tuning.arrange(for_cuda, UNTUNED)
    assert (default.parallel_batches, default.max_batch_tokens, queued) == (1, 65536, 32768)
    assert tuning.arrange(for_cuda, replace(UNTUNED, max_batch_tokens=7))[1] == 7
    tuned(for_cuda, lambda one: 1.0 if one.max_batch_tokens == 65536 else 4.0)
    assert tuning.arrange(for_cuda, UNTUNED)[0].max_batch_tokens == 65536
    other = Driver("13.0", [Gpu("NVIDIA L4", 24_000_000_000, (8, 9))])
    monkeypatch.setattr(cuda, "find_driver", lambda: other)
    assert tuning.arrange(for_cuda, UNTUNED)[0] == default


def test_the_attention_kernel():
    assert cuda.attention_kernel(H200) == "flash attention"
    assert cuda.attention_kernel(Gpu("T4", 1, (7, 5))).startswith("fused attention of TensorRT")
