"""koe5-onnx doctor reports no problem in a working installation, and names the problem otherwise."""

from __future__ import annotations

import json
import re
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from edited_json import edited

from koe5_onnx import Embedder, EngineOptions, UnsuitedCpuWarning, cli
from koe5_onnx.artifact import GRAPHS, MANIFEST, PACKED_CPU_GRAPH, PACKED_CUDA_GRAPH, weights_of
from koe5_onnx.cli import doctor
from koe5_onnx.engine import graphs
from koe5_onnx.engine.cuda.provider import Driver, Gpu
from koe5_onnx.engine.machine import Cores

DRIVER = Driver(
    "13.0", [Gpu("NVIDIA H200", 150_000_000_000, (9, 0)), Gpu("NVIDIA L4", 24_000_000_000, (8, 9))]
)

WEIGHTS = weights_of(GRAPHS["int8"])


def report(capsys, *arguments: str) -> tuple[int, dict]:
    """Return the exit code and the JSON of a run."""
    code = cli.main(["doctor", "--json", *map(str, arguments)])
    return code, json.loads(capsys.readouterr().out)


def test_all_is_well(capsys, artifact_path):
    code, found = report(capsys, "--artifact", artifact_path)
    assert (code, found["ok"], found["problems"]) == (0, True, {})
    findings = found["findings"]
    assert {"koe5-onnx", "python", "numpy", "tokenizers", "huggingface-hub"} < set(findings)
    assert findings["ONNX Runtime"].startswith("onnxruntime")
    assert findings["CPUExecutionProvider"] == "loads"
    assert findings["precision"] == "int8"
    assert "512 tokens" in findings["contract"]
    assert "over 300 texts" in findings["cosine to PyTorch"]
    assert findings["one text"].endswith("of length 1.0000")


def test_the_table_has_every_finding(capsys, artifact_path):
    assert cli.main(["doctor", "--artifact", str(artifact_path)]) == 0
    table = capsys.readouterr().out
    for finding in doctor.examine(str(artifact_path), EngineOptions()):
        assert f"{finding.name} " in table
        assert finding.value in table
    assert table.endswith("\nno problems found\n")


def test_without_an_artifact(capsys):
    code, found = report(capsys)
    assert code == 0
    assert "artifact" not in found["findings"]


def test_a_damaged_artifact(capsys, artifact_copy):
    (artifact_copy / WEIGHTS).unlink()
    code, found = report(capsys, "--artifact", artifact_copy)
    assert (code, found["ok"]) == (1, False)
    assert f"{WEIGHTS} is missing" in found["problems"]["artifact"]
    assert cli.main(["doctor", "--artifact", str(artifact_copy)]) == 1
    table = capsys.readouterr().out
    assert "PROBLEM: " in table
    assert table.endswith("\n1 problem found\n")


@pytest.mark.parametrize(
    ("field", "value", "finding"),
    [
        ("certificate", None, "certificate"),
        ("contract", {"dim": 31}, "artifact"),
        ("contract", {"dim": 33}, "artifact"),
    ],
)
def test_an_artifact_that_is_not_what_it_says(capsys, artifact_copy, field, value, finding):
    with edited(artifact_copy / MANIFEST) as manifest:
        manifest[field] = value if value is None else manifest[field] | value
    code, found = report(capsys, "--artifact", artifact_copy)
    assert code == 1
    assert list(found["problems"]) == [finding]


def test_two_wheels_of_onnxruntime(capsys, tmp_path, monkeypatch):
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.22.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.22.0\n"
        )
        (folder / "top_level.txt").write_text("onnxruntime\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, found = report(capsys)
    assert code == 1
    assert found["findings"]["ONNX Runtime"] == "onnxruntime 1.22.0, onnxruntime-gpu 1.22.0"
    assert "pip uninstall onnxruntime onnxruntime-gpu" in found["problems"]["ONNX Runtime"]


def test_no_onnxruntime(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("importlib.metadata.packages_distributions", dict)
    code, found = report(capsys)
    assert code == 1
    assert found["findings"]["ONNX Runtime"] == "none"
    assert "'.[cpu]'" in found["problems"]["providers"]


class StubRuntime(SimpleNamespace):
    """Fake onnxruntime whose CUDA provider does not load, or opens the providers `loads_instead`."""

    def __init__(self, loads_instead: list[str] | None) -> None:
        super().__init__(loads_instead=loads_instead, __file__="nowhere/__init__.py")

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        pass

    def InferenceSession(self, graph, providers, enable_fallback):  # noqa: N802  (onnxruntime's name)
        assert not enable_fallback
        if providers == ["CPUExecutionProvider"]:
            return SimpleNamespace(get_providers=lambda: providers)
        if self.loads_instead is None:
            raise RuntimeError("libcudnn.so.9: cannot open shared object file")
        return SimpleNamespace(get_providers=lambda: self.loads_instead)


@pytest.mark.parametrize(
    ("instead", "message"),
    [(None, "libcudnn.so.9"), (["CPUExecutionProvider"], "opened CPUExecutionProvider instead")],
)
def test_a_provider_that_is_listed_but_does_not_load(capsys, monkeypatch, instead, message):
    monkeypatch.setattr(doctor, "find_driver", lambda: DRIVER)
    monkeypatch.setattr(doctor, "import_onnxruntime", lambda: StubRuntime(instead))
    code, found = report(capsys)
    assert code == 1
    assert list(found["problems"]) == ["CUDAExecutionProvider"]
    assert message in found["problems"]["CUDAExecutionProvider"]
    assert found["findings"]["CPUExecutionProvider"] == "loads"
    assert found["findings"]["TensorrtExecutionProvider"] == "not used by koe5-onnx"


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ((), "unknown"),
        (("amx_int8", "avx512_vnni"), "fastest: matrix instructions (AMX)"),
        (("avx512_vnni", "avx2"), "fast: dot product instructions (avx512_vnni)"),
        (("asimddp",), "fast: dot product instructions (asimddp)"),
        (("avx2",), "fast with the fused kernels: AVX2, exact sums"),
        (("sse2",), "slow: no dot product instructions and no AVX2"),
    ],
)
def test_what_the_cpu_means_for_int8(capsys, monkeypatch, features, words):
    monkeypatch.setattr(doctor, "cpu_features", lambda: features)
    assert report(capsys)[1]["findings"]["int8 here"].startswith(words)


@pytest.mark.parametrize(
    ("features", "value", "problem"),
    [
        (("avx512_vnni", "avx2", "avx_vnni"), "suitable: has avx512_vnni, avx_vnni, avx2", None),
        ((), "unknown: this system does not list the CPU's instructions", None),
        (("asimd",), "not suitable", "intended for CPUs with one of amx_int8, avx512_vnni, "),
    ],
)
def test_whether_the_cpu_suits_an_artifact(capsys, monkeypatch, artifact_path, features, value, problem):
    monkeypatch.setattr(graphs, "installed_kernels", lambda: "none here")
    monkeypatch.setattr(doctor, "cpu_features", lambda: features)
    code, found = report(capsys, "--artifact", artifact_path)
    assert code == (problem is not None)
    assert found["findings"]["this CPU"] == value
    assert found["problems"].get("this CPU", "").startswith(problem or "")


def test_the_warning_of_a_session_has_the_words_of_doctor(capsys, monkeypatch, artifact_path):
    monkeypatch.setattr(graphs, "installed_kernels", lambda: "none here")
    for place in ("koe5_onnx.engine.providers.cpu_features", "koe5_onnx.cli.doctor.cpu_features"):
        monkeypatch.setattr(place, lambda: ("sse2",))
    problem = report(capsys, "--artifact", artifact_path)[1]["problems"]["this CPU"]
    with pytest.warns(UnsuitedCpuWarning, match=re.escape(f"{artifact_path} (int8) is {problem}")):
        Embedder.open(artifact_path, threads=1).close()


def test_any_cpu_suits(capsys, artifact_copy):
    with edited(artifact_copy / MANIFEST) as manifest:
        manifest["target"] = {"devices": ["cpu"], "instructions": [], "without": ""}
    assert (
        report(capsys, "--artifact", artifact_copy)[1]["findings"]["this CPU"]
        == "suitable: the artifact runs well on any CPU"
    )


def test_an_artifact_for_cuda_is_tried_there(capsys, artifact_copy, monkeypatch):
    with edited(artifact_copy / MANIFEST) as manifest:
        manifest["target"] = {"devices": ["cuda"], "instructions": [], "without": ""}
    devices = []

    def open_on(path, options):
        devices.append(options.device)
        return nullcontext(SimpleNamespace(encode=lambda texts: np.full((1, 64), 64**-0.5, np.float32)))

    monkeypatch.setattr(doctor.Embedder, "open", open_on)
    code, found = report(capsys, "--artifact", artifact_copy)
    assert (code, devices) == (0, ["cuda"])
    assert found["findings"]["this CPU"] == "not used: made for cuda"


def test_the_gpus(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "find_driver", lambda: DRIVER)
    assert report(capsys)[1]["findings"]["GPUs"] == (
        "cuda:0 NVIDIA H200, 150 GB, compute capability 9.0; "
        "cuda:1 NVIDIA L4, 24 GB, compute capability 8.9; the driver runs CUDA up to 13.0"
    )


def test_no_gpu_is_no_problem_for_the_cpu(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "find_driver", lambda: "no NVIDIA driver was found")
    found = report(capsys)[1]
    assert found["findings"]["GPUs"] == "none: no NVIDIA driver was found"
    assert "GPUs" not in found["problems"]


def test_the_gpu_wheel_without_a_driver(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "find_driver", lambda: "no NVIDIA driver was found")
    monkeypatch.setattr(doctor, "import_onnxruntime", lambda: StubRuntime(["CPUExecutionProvider"]))
    assert "no NVIDIA driver was found" in report(capsys)[1]["problems"]["CUDAExecutionProvider"]


@pytest.mark.parametrize(
    ("device", "kernel"), [((), "flash attention"), (("--device", "cuda:2"), "fused attention of TensorRT")]
)
def test_the_attention_kernel_of_the_packed_graph(capsys, monkeypatch, artifact_copy, device, kernel):
    (artifact_copy / PACKED_CPU_GRAPH).rename(artifact_copy / PACKED_CUDA_GRAPH)
    with edited(artifact_copy / MANIFEST) as manifest:
        manifest["target"] = {"devices": ["cuda"], "instructions": [], "without": ""}
        manifest["files"][PACKED_CUDA_GRAPH] = manifest["files"].pop(PACKED_CPU_GRAPH)
    embedder = SimpleNamespace(encode=lambda texts: np.full((1, 64), 64**-0.5, np.float32))
    monkeypatch.setattr(doctor.Embedder, "open", lambda path, options: nullcontext(embedder))
    driver = Driver("13.0", [*DRIVER.gpus, Gpu("Tesla T4", 16_000_000_000, (7, 5))])
    monkeypatch.setattr(doctor, "find_driver", lambda: driver)
    found = report(capsys, "--artifact", artifact_copy, *device)[1]["findings"]
    assert found["graph"] == "the packed graph, without padding"
    assert found["attention"].startswith(kernel)


@pytest.mark.parametrize(
    ("cores", "is_hinted"),
    [
        (Cores(32, "64 CPUs allowed, 32 physical cores, no cgroup quota"), True),
        (Cores(32, "64 CPUs allowed, 32 physical cores, cgroup quota 32 CPUs"), False),
        (Cores(4, "8 CPUs allowed, 4 physical cores, no cgroup quota"), False),
    ],
)
def test_many_cores_without_a_limit(monkeypatch, cores, is_hinted):
    monkeypatch.setattr("koe5_onnx.cli.doctor.usable_cores", lambda: cores)
    (threads,) = (finding for finding in doctor._machine() if finding.name == "threads")
    assert ("set KOE5_ONNX_THREADS to the request" in threads.value) == is_hinted


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("KOE5_ONNX_KERNELS_LEVEL is 'sse', expected amx, avx2 or none", "correct the variable"),
        ("the library does not load: invalid ELF header", "reinstall koe5-onnx-kernels"),
        ("KOE5_ONNX_KERNELS_LEVEL is none", None),
        ("fused kernels are not installed (...)", None),
    ],
)
def test_kernels_that_cannot_run(monkeypatch, reason, advice):
    monkeypatch.setattr("koe5_onnx.cli.doctor.installed_kernels", lambda: reason)
    (kernels,) = (finding for finding in doctor._machine() if finding.name == "fused kernels")
    assert (kernels.value, kernels.problem) == (reason, advice)


def test_kernels_of_another_version(monkeypatch):
    kernels = ModuleType("koe5_onnx_kernels")
    kernels.OPSET_VERSION = graphs.FUSED_OPERATORS - 1
    monkeypatch.setitem(sys.modules, "koe5_onnx_kernels", kernels)
    (found,) = (finding for finding in doctor._machine() if finding.name == "fused kernels")
    assert found.value.endswith("(install matching versions of the two packages)")
    assert found.problem == "the padded graph runs instead of the packed graph"


def test_an_artifact_that_could_be_faster(capsys, artifact_path, artifact_copy):
    assert "to speed it up" not in report(capsys, "--artifact", artifact_path)[1]["findings"]
    with edited(artifact_copy / MANIFEST) as manifest:
        manifest["fused_operators"] -= 1
    assert "to speed it up" in report(capsys, "--artifact", artifact_copy)[1]["findings"]
    (artifact_copy / PACKED_CPU_GRAPH).unlink()
    with edited(artifact_copy / MANIFEST) as manifest:
        del manifest["files"][PACKED_CPU_GRAPH]
        manifest["packed_certificate"] = None
    code, found = report(capsys, "--artifact", artifact_copy)
    assert code == 0
    assert "export the artifact again" in found["findings"]["to speed it up"]
