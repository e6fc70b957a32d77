"""The kernels' library: KOE5_ONNX_KERNELS_LIBRARY if it is set, the installed one, or one built here."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="onnx makes the graphs of the kernels' tests")

from kernel_nodes import LEVELS, Kernels, KernelsAt

ROOT = Path(__file__).parents[2]


def _built() -> Path:
    named = os.environ.get("KOE5_ONNX_KERNELS_LIBRARY")
    if named:
        return Path(named)
    if importlib.util.find_spec("koe5_onnx_kernels") is not None:
        import koe5_onnx_kernels

        return koe5_onnx_kernels.library()
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    if cmake is None or ninja is None:
        pytest.skip(
            "building the kernels requires cmake, ninja, and g++ 12 or clang 15 or later. Install them"
        )
    build = ROOT / "build" / "kernels"
    configure = [cmake, "-S", str(ROOT / "kernels"), "-B", str(build), "-G", "Ninja"]
    configured = subprocess.run(configure, capture_output=True, text=True, check=False)
    if configured.returncode != 0:
        pytest.skip(f"the kernels cannot be built here: {configured.stderr.strip()}")
    subprocess.run([cmake, "--build", str(build)], check=True, stdout=subprocess.DEVNULL)
    return build / "libkoe5_kernels.so"


@pytest.fixture(scope="session")
def built_library() -> Path:
    """Return the shared library, even if this CPU cannot use it. Skips if the build cannot be configured."""
    return _built()


@pytest.fixture
def package(built_library: Path, tmp_path: Path) -> Path:
    """Return a folder with koe5_onnx_kernels as installed."""
    source = ROOT / "kernels" / "koe5_onnx_kernels"
    shutil.copytree(source, tmp_path / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(built_library, tmp_path / source.name / "libkoe5_kernels.so")
    return tmp_path


@pytest.fixture(scope="session")
def library(built_library: Path) -> Path:
    """Return the shared library. Skips with a reason if this CPU cannot use it."""
    loaded = ctypes.CDLL(str(built_library))
    loaded.koe5_kernels_unavailable.restype = ctypes.c_char_p
    reason = loaded.koe5_kernels_unavailable().decode()
    if reason:
        pytest.skip(f"the kernels cannot be used here: {reason}")
    return built_library


@pytest.fixture(scope="session")
def levels(library: Path) -> tuple[str, ...]:
    """Return the levels of this CPU, lowest first."""
    return tuple(level for level in LEVELS if _held_to(level, library) == level)


def _held_to(level: str, library: Path) -> str:
    """Return the level that a process selects if KOE5_ONNX_KERNELS_LEVEL is `level`."""
    code = (
        "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).koe5_kernels_level; "
        "f.restype = ctypes.c_char_p; print(f().decode())"
    )
    command = [sys.executable, "-c", code, str(library)]
    environment = os.environ | {"KOE5_ONNX_KERNELS_LEVEL": level}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="session")
def kernels(library: Path) -> Kernels:
    """Return the operators at the default level of this CPU."""
    return Kernels(library)


@pytest.fixture(scope="session")
def kernels_at(library: Path, levels: tuple[str, ...]) -> Iterator[Callable[[str], Kernels]]:
    """Return a function that returns the operators at a level. Skips if this CPU lacks the level."""
    made: dict[str, KernelsAt] = {}

    def at(level: str) -> Kernels:
        if level not in levels:
            pytest.skip(f"this CPU has no {level}")
        if level not in made:
            made[level] = KernelsAt(library, level)
        return made[level]

    yield at
    for each in made.values():
        each.close()


@pytest.fixture(scope="session", params=LEVELS)
def each_level(request: pytest.FixtureRequest, kernels_at: Callable[[str], Kernels]) -> Kernels:
    """Return the operators at each level of this CPU in turn."""
    return kernels_at(request.param)
