"""The packed graph runs only where it can, and whoever asks is told why not."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from koe5_onnx import Artifact, Embedder, InputError, ProviderError
from koe5_onnx.artifact import FUSED_GRAPH, File
from koe5_onnx.engine.graphs import choose, installed_kernels


@pytest.fixture
def stock(artifact_path):
    """The tiny artifact without a graph for fused kernels."""
    opened = Artifact.open(artifact_path)
    files = {name: file for name, file in opened.manifest.files.items() if name != FUSED_GRAPH}
    return Artifact(opened.path, replace(opened.manifest, files=files))


@pytest.fixture
def fused(stock):
    files = {**stock.manifest.files, FUSED_GRAPH: File(1, "0")}
    return Artifact(stock.path, replace(stock.manifest, files=files, fused_operators=2))


@pytest.fixture
def kernels(monkeypatch):
    """A stand-in for the distribution of kernels: `reason` says why it cannot run."""
    module = ModuleType("koe5_onnx_kernels")
    module.reason = None
    module.unavailable = lambda: module.reason
    module.level = lambda: "amx"
    module.OPSET_VERSION = 2
    module.library = lambda: Path("libkernels.so")
    monkeypatch.setitem(sys.modules, "koe5_onnx_kernels", module)
    return module


def test_fused_where_all_is_there(fused, kernels):
    graph = choose(fused, "cpu")
    assert graph.is_packed
    assert graph.file == fused.path / FUSED_GRAPH
    assert graph.library == Path("libkernels.so")
    assert graph.reason == "the packed graph, on amx"
    assert not choose(fused, "cpu", "stock").is_packed


def test_an_artifact_without_it(stock, kernels):
    check_refused(stock, "cpu", "the artifact has no graph for fused kernels")


def test_a_cpu_that_cannot(fused, kernels):
    kernels.reason = "this CPU has no AVX512-VNNI"
    check_refused(fused, "cpu", "this CPU has no AVX512-VNNI")


@pytest.mark.parametrize("version", [1, 3])
def test_a_graph_for_other_kernels(fused, kernels, version):
    kernels.OPSET_VERSION = version
    check_refused(
        fused, "cpu", f"for version 2 of the fused operators, installed are those of version {version}"
    )


def test_another_device(fused, kernels):
    check_refused(fused, "cuda", "the artifact has no packed graph for CUDA")


def test_kernels_not_installed(fused, monkeypatch):
    monkeypatch.setitem(sys.modules, "koe5_onnx_kernels", None)
    check_refused(fused, "cpu", r"pip install 'koe5-onnx\[kernels\]'")
    assert "not installed" in installed_kernels()


def check_refused(artifact, device, reason):
    graph = choose(artifact, device)
    assert not graph.is_packed
    assert graph.file == artifact.graph
    with pytest.raises(ProviderError, match=f"the (fused|packed) graph cannot run: .*{reason}"):
        choose(artifact, device, "fused")


def test_another_word(artifact_path):
    with pytest.raises(InputError, match="kernels is 'fast': expected 'auto', 'fused' or 'stock'"):
        Embedder.open(artifact_path, kernels="fast")
