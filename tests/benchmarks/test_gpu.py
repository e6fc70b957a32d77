"""The GPU benchmark without a GPU: rejected settings, planned contenders, and one run on the CPU."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.__main__ import main
from benchmarks.contenders import onnxruntime as ort_contender
from benchmarks.contenders.engine import Request
from benchmarks.contenders.registry import GPU_NAMES, OWN, gpu_contenders
from benchmarks.speed import gpu
from benchmarks.speed.gemm import Shape
from benchmarks.speed.gpu_ceiling import GpuCeiling
from benchmarks.speed.texts import Corpus
from koe5_onnx import Artifact, FidelityError, Tokenizer
from koe5_onnx.engine.cuda import provider as cuda
from koe5_onnx.engine.cuda.provider import Driver, Gpu


def test_a_missing_gpu_is_reported(seeded, monkeypatch, capsys):
    monkeypatch.setattr(cuda, "find_driver", lambda: "no NVIDIA driver was found")
    assert main(["gpu", "--checkpoint", str(seeded)]) == 1
    shown = capsys.readouterr()
    assert shown.err == (
        "error: CUDA cannot be used: no NVIDIA driver was found. To use the CPU, set the device to 'cpu'\n"
    )
    assert shown.out == ""


def test_the_gpu_is_named(monkeypatch):
    monkeypatch.setattr(cuda, "find_driver", lambda: Driver("13.0", [Gpu("NVIDIA H200", 1, (9, 0))]))
    assert gpu.name_of_gpu("cuda:0") == "NVIDIA H200, compute capability 9.0"
    assert "do not apply to GPUs" in gpu.name_of_gpu("cpu")


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_contenders_differ_only_in_what_is_compared(device):
    found = gpu_contenders(device)
    assert tuple(found) == GPU_NAMES
    assert {one.environment for one in found.values()} == {OWN}
    assert {one.options["device"] for one in found.values()} == {device}
    torch = [one for one in found.values() if one.family == "sentence_transformers"]
    assert {one.options["dtype"] for one in torch} == {"float32" if device == "cpu" else "float16"}
    assert found["koe5-padded"].options["graph"] == "padded"
    assert found["koe5-graphs"].options.get("cuda_graphs", False) is (device != "cpu")
    assert (found["koe5"].files == "artifact fp16") is (device != "cpu")
    assert [one.options["attention"] for one in torch] == ["sdpa", "flash_attention_2", "sdpa"]


def test_the_corpus_is_repeated_to_the_length_of_a_pass(seeded):
    counter = Tokenizer(seeded / "tokenizer.json", 512)
    texts = ["query: 가나다", "passage: 라"]
    lengths = counter.encode(texts).lengths.tolist()
    corpus = Corpus("short", texts, lengths)
    longer = gpu.lengthened(corpus, sum(lengths) + 1, counter)
    assert longer.texts == ["0 query: 가나다", "0 passage: 라", "1 query: 가나다", "1 passage: 라"]
    assert longer.lengths == counter.encode(longer.texts).lengths.tolist()
    assert gpu.lengthened(corpus, sum(lengths), counter) == corpus


def test_the_ceiling_counts_all_layers():
    pytest.importorskip("torch")
    ceiling = GpuCeiling(Shape(3, 32, 64), "cpu")
    ceiling._seconds = lambda rows: 0.5
    assert ceiling.measure() == {"fp16": 64 / (3 * 0.5)}
    del ceiling._seconds
    assert ceiling.measure()["fp16"] > 0


def test_a_failed_verification_is_recorded(exported, seeded, monkeypatch):
    def miss(*_args, **_kwargs):
        raise FidelityError("too far from PyTorch")

    monkeypatch.setattr(gpu, "verify_artifact", miss)
    found = gpu._fidelity(Artifact.open(exported["fp32"]), seeded, "padded")
    assert (found["fault"], found["cosine_min"]) == ("too far from PyTorch", None)


@pytest.mark.filterwarnings("ignore")  # warnings of tracing
def test_the_fp16_graph_for_onnx_runtime(seeded, tmp_path):
    """The graph can be made without a GPU. On a CPU, ONNX Runtime computes in fp32 and rounds to fp16."""
    for kind, source in (("onnx", seeded), ("ort-fp16", tmp_path / "onnx")):
        (tmp_path / kind).mkdir()
        ort_contender.prepare(Request(kind, source, tmp_path / kind, []))
        (tmp_path / kind / "config.json").write_bytes((seeded / "config.json").read_bytes())
    model = onnx.load(tmp_path / "ort-fp16" / ort_contender.GRAPH, load_external_data=False)
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert "SkipLayerNormalization" in {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(
        tmp_path / "ort-fp16" / ort_contender.GRAPH, providers=["CPUExecutionProvider"]
    )
    ids = np.array([[0, 5, 6, 7, 2]])
    found = session.run([ort_contender.EMBEDDING], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    assert np.isfinite(found).all()
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::koe5_onnx.TruncationWarning")
def test_a_complete_run_on_the_cpu(seeded, tmp_path, capsys, monkeypatch):
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr("benchmarks.speed.throughput.SETTLE_SECONDS", 0)
    names = ("koe5", "koe5-padded", "sentence-transformers-sdpa")
    arguments = ["gpu", "--device", "cpu", "--checkpoint", str(seeded), "--cache", str(tmp_path / "cache")]
    arguments += ["--texts", "4", "--pass-tokens", "1", "--rounds", "2", "--calls", "4", "--threads", "1"]
    arguments += ["--json", str(tmp_path / "gpu.json")]
    assert main([*arguments, *(word for name in names for word in ("--contender", name))]) == 0
    result = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert (result["benchmark"], result["device"], result["share_of"]) == ("gpu", "cpu", "fp16")
    assert result["baseline"] == "sentence-transformers-sdpa"
    for corpus in result["corpora"].values():
        figures = corpus["tokens_per_second"]
        assert set(figures) == set(names)
        assert figures["sentence-transformers-sdpa"]["ratio"] == 1
        for one in figures.values():
            assert len(one["rounds"]) == len(corpus["ceiling"]["fp16"]) == 2
    (fidelity,) = result["fidelity"].values()
    assert (fidelity["fault"], fidelity["provider"]) == ("", "CPUExecutionProvider")
    assert fidelity["cosine_min"] > 0.99999
    shown = capsys.readouterr().out
    assert "lowest cosine to PyTorch" in shown
