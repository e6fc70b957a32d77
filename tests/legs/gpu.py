"""The GPU leg: ONNX Runtime's GPU wheel on machines without a GPU.

First without anything of CUDA, where each missing part must be named. Then on a stand-in (tests/gpu/standin):
libraries with CUDA's names whose memory is the host's, and on which kernels are started and compute nothing.
What ONNX Runtime decides on the way is real: which kernels, which copies, what is captured and what memory.
That part is left out, and said so, where no C++ compiler is. Half a minute on two cores.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from environment import ROOT, Environment, find_compiler, run
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.seeded import Size, write_seeded_checkpoint

WHEEL = "onnxruntime-gpu==1.31.1"
"""Built for CUDA 13, whose library names the stand-in has."""
SOURCES = ROOT / "tests/gpu/standin"
LIBRARIES = {
    "libcuda.so.1": "driver.cc",
    "libcudart.so.13": "cudart.cc",
    "libcublas.so.13": "cublas.cc",
    "libcublasLt.so.13": "cublaslt.cc",
    "libcurand.so.10": "curand.cc",
    "libcudnn.so.9": "cudnn.cc",
}
"""The first one holds what all share."""
SIZE = Size(3, 128, 2, 256, 1200)
"""Heads of 64, as KoE5's."""


def main() -> None:
    """Run the leg."""
    gpu = Environment(ROOT / ".venv-gpu")
    gpu.install("-c", ROOT / "constraints.txt", "-e", ".[gpu]", WHEEL, "pytest")
    gpu.run("pytest", "tests/runtime/test_cuda.py")
    compiler = find_compiler("gpu: no stand-in")
    if compiler is None:
        return
    with tempfile.TemporaryDirectory(prefix="koe5-gpu-") as name:
        folder = Path(name)
        build(folder, compiler)
        export(folder)
        os.environ["LD_LIBRARY_PATH"] = str(folder)
        os.environ["STANDIN_ARTIFACTS"] = str(folder)
        gpu.run("pytest", "tests/gpu")


def build(folder: Path, compiler: str) -> None:
    """Compile the stand-in's libraries; each is one version node, which is what the wheel asks for."""
    shared = folder / next(iter(LIBRARIES))
    for name, source in LIBRARIES.items():
        script = folder / f"{name}.map"
        script.write_text(f"{name} {{ global: *; }};\n", encoding="utf-8")
        others = [] if name == shared.name else [shared]
        run(
            compiler,
            *("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"),
            *(f"-Wl,-soname,{name}", f"-Wl,--version-script,{script}"),
            *("-o", folder / name, SOURCES / source),
            *others,
        )


def export(folder: Path) -> None:
    """Make the artifacts, which takes PyTorch: in this environment."""
    write_seeded_checkpoint(folder / "checkpoint", SIZE)
    checkpoint = Checkpoint.open(folder / "checkpoint")
    for precision in ("fp16", "fp32"):
        export_checkpoint(checkpoint, folder / precision, ExportOptions(precision=precision))


if __name__ == "__main__":
    main()
