"""The packed graph runs only if it is supported, and callers get the reason otherwise."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from koe5_onnx import Artifact, EngineOptions, ProviderError
from koe5_onnx.artifact import PACKED_CPU_GRAPH, File
from koe5_onnx.engine.graphs import FUSED_OPERATORS, choose, installed_kernels


@pytest.fixture
def padded(artifact_path):
    """Return the tiny artifact without a packed graph."""
    opened = Artifact.open(artifact_path)
    files = {name: file for name, file in opened.manifest.files.items() if name != PACKED_CPU_GRAPH}
    return Artifact(opened.path, replace(opened.manifest, files=files))


@pytest.fixture
def packed(padded):
    files = {**padded.manifest.files, PACKED_CPU_GRAPH: File(1, "0")}
    return Artifact(padded.path, replace(padded.manifest, files=files))


@pytest.fixture
def kernels(monkeypatch):
    """Replace `koe5_onnx_kernels` with a module whose `unavailable()` returns its attribute `reason`."""
    module = ModuleType("koe5_onnx_kernels")
    module.reason = None
    module.unavailable = lambda: module.reason
    module.level = lambda: "amx"
    module.OPSET_VERSION = FUSED_OPERATORS
    module.library = lambda: Path("libkernels.so")
    monkeypatch.setitem(sys.modules, "koe5_onnx_kernels", module)
    return module


def test_packed_where_all_is_there(packed, kernels):
    graph = choose(packed, EngineOptions())
    assert graph.is_packed
    assert graph.file == packed.path / PACKED_CPU_GRAPH
    assert graph.library == Path("libkernels.so")
    assert graph.reason == "the packed graph, on amx"
    assert not choose(packed, EngineOptions(graph="padded")).is_packed


def test_an_artifact_without_it(padded, kernels):
    check_refused(padded, "cpu", "the artifact has no packed graph for CPUs")


def test_a_cpu_that_cannot(packed, kernels):
    kernels.reason = "this CPU has no AVX512-VNNI"
    check_refused(packed, "cpu", "this CPU has no AVX512-VNNI")


@pytest.mark.parametrize("version", [FUSED_OPERATORS - 1, FUSED_OPERATORS + 1])
def test_other_kernels(packed, kernels, version):
    kernels.OPSET_VERSION = version
    check_refused(
        packed,
        "cpu",
        f"koe5-onnx-kernels has version {version} .*, but this koe5-onnx requires version {FUSED_OPERATORS}",
    )


def test_an_artifact_for_other_kernels(packed, kernels):
    older = Artifact(packed.path, replace(packed.manifest, fused_operators=1))
    check_refused(older, "cpu", f"requires version 1 .*, but this koe5-onnx uses version {FUSED_OPERATORS}")


def test_another_device(packed, kernels):
    check_refused(packed, "cuda", "the artifact has no packed graph for CUDA")


def test_kernels_not_installed(packed, monkeypatch):
    monkeypatch.setitem(sys.modules, "koe5_onnx_kernels", None)
    check_refused(packed, "cpu", r"pip install \./kernels in a clone")
    assert "not installed" in installed_kernels()


def check_refused(artifact, device, reason):
    graph = choose(artifact, EngineOptions(device=device))
    assert not graph.is_packed
    assert graph.file == artifact.graph
    with pytest.raises(ProviderError, match=f"the packed graph cannot run: .*{reason}"):
        choose(artifact, EngineOptions(device=device, graph="packed"))
