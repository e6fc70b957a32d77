"""The lean leg: does the runtime work as users install it?

It builds the wheel, installs it with `[cpu]`, pytest and hypothesis alone, and runs the runtime's tests from
a temporary folder: the source is out of reach, and PyTorch, onnx and transformers are not there.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from environment import ROOT, Environment, run

ABSENT = ("torch", "onnx", "transformers", "safetensors", "ml_dtypes")
"""What users of the runtime must never need."""


def main() -> None:
    """Run the leg."""
    with tempfile.TemporaryDirectory(prefix="koe5-lean-") as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        copy_tests(folder)
        lean = Environment(ROOT / ".venv-lean")
        lean.install("-c", ROOT / "constraints.txt", f"{wheel}[cpu]", "hypothesis", "pytest")
        require_lean(lean, folder)
        lean.run("koe5-onnx", "--help", cwd=folder)
        lean.run("pytest", "tests/runtime", cwd=folder)


def build(folder: Path) -> Path:
    """Build the sdist and, from it, the wheel: this proves the sdist too."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def copy_tests(folder: Path) -> None:
    """Copy the runtime's tests and pytest's settings; pyproject.toml alone makes nothing importable."""
    elsewhere = shutil.ignore_patterns("export", "benchmarks", "legs", "__pycache__")
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=elsewhere)
    shutil.copy(ROOT / "pyproject.toml", folder)


def require_lean(lean: Environment, cwd: Path) -> None:
    """Check that the environment proves what this leg claims.

    Raises:
        SystemExit: A forbidden package is there, or koe5_onnx is not the wheel's.
    """
    if present := [name for name in ABSENT if lean.where(name, cwd)]:
        sys.exit(f"the runtime must not bring {', '.join(present)}: see the dependencies in pyproject.toml")
    origin = lean.where("koe5_onnx", cwd)
    if "site-packages" not in Path(origin).parts:
        sys.exit(f"koe5_onnx comes from {origin!r}: expected the wheel in site-packages")


if __name__ == "__main__":
    main()
