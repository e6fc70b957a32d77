"""ONNX Runtime's GPU wheel on simulated CUDA libraries: what it launches, copies, captures and rejects.

ONNX Runtime's provider, choice of kernels and memory management are real, but kernels compute nothing.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from koe5_onnx import Embedder, EngineOptions, OutOfMemoryError, ProviderError, SmallerBatchWarning
from koe5_onnx.artifact import GRAPHS, PACKED_CUDA_GRAPH, Artifact
from koe5_onnx.cli import main
from koe5_onnx.engine import tuning
from koe5_onnx.engine.batching import Batch, pack_cuda
from koe5_onnx.engine.cuda import graph_capture
from koe5_onnx.engine.session import Session

GRAPH = GRAPHS["fp16"]

LAYERS = 3
LAUNCHES_A_LAYER, LAUNCHES_AROUND = 11, 15
"""Kernel launches of the packed graph, per layer and for the rest. A layer has six products, the bias of the
queries, attention, two residual sums with norm, and GELU. The rest are embeddings, pooling and their
copies on the GPU."""
STARTED = ("kernel ", "product ", "copy device to device")
SENTENCE = "서울은 대한민국의 수도이다."
DEAF = pytest.mark.filterwarnings("ignore::koe5_onnx.TruncationWarning")


@pytest.fixture
def trusting(monkeypatch):
    """Skip the check of captured graphs, because the simulated GPU computes no real results to compare."""
    monkeypatch.setattr(graph_capture, "_least_cosine", lambda a, b: 1.0 if a.shape == b.shape else 0.0)


def test_an_embedder_opens_on_existing_gpus_only(fp16, monkeypatch, capfd):
    with Embedder.open(fp16, device="cuda") as embedder:
        assert embedder.session.providers[0] == "CUDAExecutionProvider"
        assert embedder.encode([SENTENCE, ""]).shape == (2, 128)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ProviderError, match=r"device is 'cuda:1', but the number of GPUs is 1"):
        Embedder.open(fp16, device="cuda:1")
    monkeypatch.setenv("STANDIN_GPUS", "2")
    with Embedder.open(fp16, device="cuda:1") as embedder:
        assert embedder.encode([SENTENCE]).shape == (1, 128)


@pytest.mark.parametrize(("graph", "windows"), [("packed", [128, 256, 116]), ("padded", [500])])
def test_the_gpu_starts_before_all_texts_are_tokenized(fp16, monkeypatch, graph, windows):
    monkeypatch.setenv("STANDIN_CAPABILITY", "80")
    with Embedder.open(fp16, device="cuda", graph=graph) as embedder:
        found = []
        encode = embedder._tokenizer.encode
        monkeypatch.setattr(
            embedder._tokenizer, "encode", lambda texts: found.append(len(texts)) or encode(texts)
        )
        assert embedder.encode([f"글 {number}" for number in range(500)]).shape == (500, 128)
        assert found == windows


@pytest.mark.parametrize("graph", [GRAPH, PACKED_CUDA_GRAPH])
def test_no_node_runs_on_the_cpu(fp16, graph):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = onnxruntime.InferenceSession(fp16 / graph, options, providers=["CUDAExecutionProvider"])
    assert session.get_providers()[0] == "CUDAExecutionProvider"


@DEAF
@pytest.mark.parametrize(
    ("capability", "kernel"),
    [
        ("75", "fmha_v2"),
        *((new, "flash_fwd_kernel") for new in ("80", "89", "90")),
    ],
)
@pytest.mark.parametrize("tokens", [5, 100, 512])
def test_attention_of_the_packed_graph(fp16, seen, monkeypatch, capability, kernel, tokens):
    """Attention is fused on all of these GPUs. From compute capability 8.0 on, it is flash attention."""
    monkeypatch.setenv("STANDIN_CAPABILITY", capability)
    with Embedder.open(fp16, device="cuda") as embedder:
        seen()
        embedder.encode([" ".join(["나"] * tokens)])
    found = seen()
    assert found.named(kernel) == LAYERS
    assert found.named("oftmax") == 0


def test_attention_of_the_padded_graph(fp16, seen, monkeypatch):
    """Attention is fused on an A100. An H100 uses cuDNN's attention, which is not simulated."""
    monkeypatch.setenv("STANDIN_CAPABILITY", "80")
    with Embedder.open(fp16, device="cuda", graph="padded") as embedder:
        seen()
        embedder.encode([SENTENCE])
    assert seen().named("fmha_v2") == LAYERS
    monkeypatch.setenv("STANDIN_CAPABILITY", "90")
    with (
        Embedder.open(fp16, device="cuda", graph="padded") as embedder,
        pytest.raises(Exception, match="cudnn_flash_attention"),
    ):
        embedder.encode([SENTENCE])


def test_only_padded_graphs_need_cudnn(fp16, tmp_path):
    """Run in a separate process, because the libraries stay loaded in this one."""
    for file in Path(os.environ["LD_LIBRARY_PATH"]).glob("lib*.so.*"):
        if "cudnn" not in file.name and file.suffix != ".map":
            (tmp_path / file.name).symlink_to(file)
    code = (
        "import sys; from koe5_onnx import Embedder\n"
        "for graph in ('packed', 'padded'):\n"
        "    print(Embedder.open(sys.argv[1], device='cuda', graph=graph).encode(['가']).shape)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, fp16],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == "(1, 128)\n"
    assert "ProviderError" in found.stderr
    assert "model_fp16.onnx requires cuDNN. Run pip install 'onnxruntime-gpu[cudnn]'" in found.stderr


def test_launches_and_copies_of_a_batch(fp16, seen):
    with Embedder.open(fp16, device="cuda") as embedder:
        texts = [SENTENCE, "가", SENTENCE * 5]
        embedder.encode(texts)
        seen()
        embedder.encode(texts)
        found = seen()
        assert found.count(*STARTED) == LAUNCHES_A_LAYER * LAYERS + LAUNCHES_AROUND
        assert found.count("product ") == 6 * LAYERS
        # Five inputs, one output, and no other copies.
        copies = {name: times for name, times in found.times.items() if name.startswith("copy ")}
        del copies["copy device to device"]
        assert copies == {"copy pageable to device": 5, "copy device to pageable": 1}
        assert found.bytes["copy device to pageable"] == 3 * 128 * 4


def test_captured_graphs(fp16, seen, trusting):
    with Embedder.open(fp16, device="cuda", cuda_graphs=True) as embedder:
        opened = seen()
        buckets = embedder.session._captured.buckets
        assert opened.times["capture begins"] == opened.times["capture ends"] == len(buckets)
        assert opened.count("forbidden", "capture lost") == 0
        # A captured copy from the host would read released memory at each replay.
        assert {name for name in opened.times if name.startswith("captured copy")} == {
            "captured copy device to device"
        }
        assert opened.named("captured kernel") + opened.named("captured product") > 0
        for texts in ([SENTENCE], ["가", SENTENCE], [" ".join(["나"] * 120)]):
            assert embedder.encode(texts).shape == (len(texts), 128)
            found = seen()
            assert found.times["graph launched"] == 1
            assert found.count("kernel ", "product ", "allocated", "capture") == 0
            assert (found.count("copy pageable to device"), found.count("copy device to pageable")) == (5, 1)


def different(count):
    """Return `count` different texts, because `encode` computes equal texts only once."""
    return [f"{number:04} {SENTENCE}" for number in range(count)]


def test_a_large_batch_is_not_replayed(fp16, seen, trusting):
    with Embedder.open(fp16, device="cuda", cuda_graphs=True) as embedder:
        seen()
        embedder.encode(different(100))
        found = seen()
        assert found.count("graph launched") == 0
        assert found.count("kernel ") > 0


def test_calls_from_all_threads_replay_graphs(fp16, seen, trusting):
    """ONNX Runtime stores captured graphs per thread, so the caller's thread cannot replay them itself."""
    with Embedder.open(fp16, device="cuda", cuda_graphs=True) as embedder:
        seen()
        threads = [threading.Thread(target=embedder.encode, args=([SENTENCE],)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = seen()
        assert found.times["graph launched"] == 8
        assert found.count("kernel ", "capture") == 0


def test_a_replay_with_different_results_is_an_error(fp16):
    with pytest.raises(ProviderError, match=r"graph for 16 tokens returns different embeddings"):
        Embedder.open(fp16, device="cuda", cuda_graphs=True)


def test_a_capture_that_another_thread_invalidates(fp16, trusting, monkeypatch):
    """Another capture stands for another Embedder that allocates memory during the capture."""
    real = graph_capture.FixedRun.run

    def run(self, feeds):
        runtime = ctypes.CDLL("libcudart.so.13")
        stream, at = ctypes.c_void_p(), ctypes.c_void_p()
        runtime.cudaStreamCreate(ctypes.byref(stream))
        runtime.cudaStreamBeginCapture(stream, 0)
        try:
            return real(self, feeds)
        finally:
            runtime.cudaStreamEndCapture(stream, ctypes.byref(at))

    monkeypatch.setattr(graph_capture.FixedRun, "run", run)
    with pytest.raises(ProviderError, match=r"cannot capture CUDA graphs.*stream is capturing"):
        Embedder.open(fp16, device="cuda", cuda_graphs=True)


def memory_left(monkeypatch, limit_bytes):
    """Limit further allocations to this number of bytes."""
    runtime = ctypes.CDLL("libcudart.so.13")
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    monkeypatch.setenv("STANDIN_MEMORY", str(total.value - free.value + limit_bytes))


def test_too_little_memory_halves_the_batches(fp16, seen, monkeypatch):
    with Embedder.open(fp16, device="cuda") as embedder:
        seen()
        embedder.encode(different(150))
        needed = seen().bytes["allocated"]
    with Embedder.open(fp16, device="cuda") as embedder:
        memory_left(monkeypatch, needed * 3 // 4)
        with pytest.warns(SmallerBatchWarning, match=r"split in half, because a batch of .* tokens"):
            assert embedder.encode(different(150)).shape == (150, 128)
        assert seen().count("refused") > 0
        memory_left(monkeypatch, 0)
        with pytest.raises(OutOfMemoryError, match=r"smaller max_batch_tokens\. ONNX Runtime reports"):
            embedder.encode(different(1000))


def test_onnxruntime_respects_gpu_mem_limit(fp16):
    with Embedder.open(fp16, device="cuda", gpu_mem_limit=4_000_000) as embedder:
        assert embedder.encode([SENTENCE]).shape == (1, 128)
        with pytest.raises(OutOfMemoryError), pytest.warns(SmallerBatchWarning):
            embedder.encode(different(2000))


def test_fp32_runs_on_the_padded_graph(fp32, seen):
    with Embedder.open(fp32, device="cuda") as embedder:
        assert embedder.encode([SENTENCE]).shape == (1, 128)
    assert seen().named("oftmax") > 0


def test_tune(fp16, monkeypatch, tmp_path):
    monkeypatch.setenv("STANDIN_CAPABILITY", "80")
    monkeypatch.setenv("KOE5_ONNX_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_GPU_SAMPLES", 2)
    profile = tuning.tune(Artifact.open(fp16), EngineOptions(device="cuda", parallel_batches=None), rounds=1)
    assert {one.parallel_batches for one, _ in profile.tokens_per_second} == {1, 2}


def test_doctor(fp16, capsys):
    main(["doctor", "--artifact", str(fp16)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "GPUs cuda:0 stand-in, 86 GB, compute capability 9.0" in shown
    assert "CUDAExecutionProvider loads" in shown
    assert "attention flash attention" in shown


def test_the_inputs_of_a_batch_are_copied_to_the_gpu(fp16, seen):
    """The copied bytes are those of the batch's arrays."""
    artifact = Artifact.open(fp16)
    session = Session(artifact, EngineOptions(device="cuda"))
    ids = [np.arange(4, 4 + length, dtype=np.int32) for length in (7, 3)]
    batch = pack_cuda(ids, Batch(np.arange(2), 0), 1, counts_from_pad=True)
    session.run(*batch)
    seen()
    session.run(*batch)
    expected = sum(array.nbytes for array in batch)
    assert seen().bytes["copy pageable to device"] == expected == 3 * 80 + 2 * 28 + 12


def test_the_simulation_rejects_what_cuda_rejects():
    """Because of these errors during a capture, the other tests show that captures call nothing forbidden."""
    runtime = ctypes.CDLL("libcudart.so.13")
    stream, graph, at = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    runtime.cudaStreamCreate(ctypes.byref(stream))
    host = np.zeros(4, np.int32)
    for spoil in (
        lambda: runtime.cudaMalloc(ctypes.byref(at), ctypes.c_size_t(64)),
        lambda: runtime.cudaDeviceSynchronize(),
        lambda: runtime.cudaStreamSynchronize(stream),
        lambda: runtime.cudaMemcpyAsync(
            at, ctypes.c_void_p(host.ctypes.data), ctypes.c_size_t(16), 1, stream
        ),
    ):
        assert runtime.cudaStreamBeginCapture(stream, 0) == 0
        assert spoil() == 900
        assert runtime.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 901
    assert os.environ.get("STANDIN_ARTIFACTS")
