"""Embeddings at each level (instruction set), and the level that is selected on CPUs with fewer features.

kernels/bench/mask_cpuid.c hides features of this CPU. On a CPU without CPUID faulting, patch_cpuid.py
prepares the library for that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tolerances
from kernel_nodes import LEVELS, python

ROOT = Path(__file__).parents[2]
ARTIFACT = ROOT / "tests" / "data" / "tiny-int8"
Masked = Callable[..., str]

COSINE = """
import sys, warnings
import koe5_onnx_kernels, koe5_onnx
warnings.simplefilter("error")
texts = ["서울은 대한민국의 수도이다.", "짧다", "", "a " * 400, "The river crosses the city. " * 9]
found = []
for graph in ("packed", "padded"):
    with koe5_onnx.Embedder.open(sys.argv[1], graph=graph, threads=2) as embedder:
        found.append(embedder.encode(texts))
print(koe5_onnx_kernels.level(), (found[0] * found[1]).sum(axis=1).min())
"""

SAY = "import koe5_onnx_kernels as k; print(k.level(), k.unavailable())"


def _faults() -> bool:
    return "cpuid_fault" in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()


@pytest.fixture(scope="session")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library that hides CPU features. Skip if it cannot be built or used."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or not (_faults() or shutil.which("objdump")):
        pytest.skip("masking CPUID requires a C compiler, and objdump or a CPU with CPUID faulting")
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("masking CPUID requires a signal handler, which sanitizers also install")
    built = tmp_path_factory.mktemp("mask") / "mask_cpuid.so"
    source = ROOT / "kernels" / "bench" / "mask_cpuid.c"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", built, source], check=True)
    return built


@pytest.fixture
def masked(mask: Path, package: Path) -> Masked:
    """Return a function that runs code in a new interpreter with KOE5_MASK_CPUID set to `cpu`."""
    patched = {} if _faults() else {"KOE5_MASK_PATCHED": "1"}
    if patched:
        library = package / "koe5_onnx_kernels" / "libkoe5_kernels.so"
        subprocess.run([sys.executable, ROOT / "kernels/bench/patch_cpuid.py", library], check=True)

    def run(cpu: str, code: str, **environment: str) -> str:
        environment |= patched
        try:
            return python(code, package, KOE5_MASK_CPUID=cpu, LD_PRELOAD=str(mask), **environment)
        except subprocess.CalledProcessError as error:
            if "does not support CPUID faulting" in error.stderr:
                pytest.skip(error.stderr.strip())
            raise

    return run


@pytest.mark.parametrize("level", LEVELS)
def test_fused_agrees_with_padded(package: Path, levels: tuple[str, ...], level: str) -> None:
    if level not in levels:
        pytest.skip(f"this CPU has no {level}")
    code = COSINE.replace("sys.argv[1]", repr(str(ARTIFACT)))
    found, cosine = python(code, package, KOE5_ONNX_KERNELS_LEVEL=level).split()
    assert found == level
    assert float(cosine) >= tolerances.FUSED_COSINE_MIN


def test_a_cpu_with_avx_vnni(masked: Masked, levels: tuple[str, ...]) -> None:
    if "avx_vnni" not in levels:
        pytest.skip("this CPU has no avx_vnni")
    assert masked("avx_vnni", SAY) == "avx_vnni None"
    assert masked("avx_vnni", SAY, KOE5_ONNX_KERNELS_LEVEL="amx") == "avx_vnni None"
    assert masked("avx_vnni", SAY, KOE5_ONNX_KERNELS_LEVEL="avx2") == "avx2 None"


def test_a_cpu_with_avx2_but_no_vnni(masked: Masked) -> None:
    assert masked("avx2", SAY) == "avx2 None"
    for level in ("avx2", "avx_vnni", "amx"):
        assert masked("avx2", SAY, KOE5_ONNX_KERNELS_LEVEL=level) == "avx2 None"
    code = COSINE.replace("sys.argv[1]", repr(str(ARTIFACT))).replace(
        '"packed", "padded"', '"packed", "packed"'
    )
    assert masked("avx2", code).startswith("avx2 ")


def test_a_cpu_without_avx2(masked: Masked) -> None:
    reason = "this CPU or operating system lacks AVX2 with FMA and F16C"
    assert masked("sse", SAY) == f"none {reason}"
    assert masked("sse", SAY, KOE5_ONNX_KERNELS_LEVEL="avx2") == f"none {reason}"
    auto = COSINE.replace("sys.argv[1]", repr(str(ARTIFACT))).replace('"packed", "padded"', '"auto", "auto"')
    assert masked("sse", auto.replace('simplefilter("error")', 'simplefilter("ignore")')).startswith("none ")
