"""What an installation costs: packages, megabytes, seconds and memory to import it.

Each is installed by pip, in its pinned versions, into an environment of its own. pip itself and the bytecode
that the first import compiles are not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.results import head, write_json

CHECKOUT = Path(__file__).resolve().parents[1]
_CONSTRAINTS = CHECKOUT / "benchmarks/contenders"
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Installation:
    """What one would type to have embeddings on a CPU."""

    requirements: tuple[str, ...]
    """For pip, from the checkout's folder."""
    constraints: Path
    module: str
    """What a user's first line imports."""


INSTALLATIONS = {
    "koe5-onnx[cpu]": Installation((".[cpu]",), CHECKOUT / "constraints.txt", "koe5_onnx"),
    "koe5-onnx[cpu,serve]": Installation((".[cpu,serve]",), CHECKOUT / "constraints.txt", "koe5_onnx.serve"),
    "fastembed": Installation(("fastembed",), _CONSTRAINTS / "constraints-fastembed.txt", "fastembed"),
    # PyTorch's CPU build, by its exact version; the default build for Linux brings CUDA too.
    "sentence-transformers": Installation(
        ("sentence-transformers", "torch==2.13.0"), _CONSTRAINTS / "constraints.txt", "sentence_transformers"
    ),
}

_INSTALLED = """
import importlib.metadata, json, sys
found = {}
for one in importlib.metadata.distributions():
    if one.name not in ("pip", "setuptools"):
        files = [one.locate_file(file) for file in one.files or () if file.suffix != ".pyc"]
        found[one.name] = sum(file.stat().st_size for file in files)
json.dump(found, sys.stdout)
"""
"""Bytes of each distribution, by the files that its RECORD names."""
_IMPORTED = """
import importlib, os, sys, time
start = time.perf_counter()
importlib.import_module(sys.argv[1])
seconds = time.perf_counter() - start
with open("/proc/self/statm") as file:
    pages = int(file.read().split()[1])
print(seconds, pages * os.sysconf("SC_PAGE_SIZE"))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--imports", type=int, default=15, metavar="N", help="imports of each (default: %(default)s)"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        metavar="DIR",
        help="keep the environments here, and take those that are there (default: a temporary folder)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")


def run(args: argparse.Namespace) -> int:
    """Install, measure and print."""
    result = head("footprint", 1, CHECKOUT)
    del result["checkpoint"]  # nothing is embedded
    result["installations"] = {}
    with tempfile.TemporaryDirectory(prefix="koe5-footprint-") as temporary:
        folder = args.environments or Path(temporary)
        pythons = {name: _install(one, folder / name) for name, one in INSTALLATIONS.items()}
        imported = _imports(pythons, args.imports)
        for name, python in pythons.items():
            result["installations"][name] = _installed(python) | imported[name]
    print(table(result))
    if args.json is not None:
        write_json(args.json, result)
    return 0


def _install(installation: Installation, folder: Path) -> Path:
    """Make an environment, unless it is there already, and give its Python.

    Raises:
        OSError: pip failed; its own words are on stderr.
    """
    python, ready = folder / "bin/python", folder / "installed"
    if ready.exists():
        return python
    print(f"installing {' '.join(installation.requirements)}", file=sys.stderr)
    venv.create(folder, clear=True, with_pip=True)
    options = ("--quiet", "--no-compile", "--disable-pip-version-check", "-c", installation.constraints)
    command: list[str | Path] = [python, "-m", "pip", "install", *options, *installation.requirements]
    done = subprocess.run(command, cwd=CHECKOUT, check=False)
    if done.returncode:
        raise OSError(f"pip could not install {' '.join(installation.requirements)}")
    ready.touch()
    return python


def _installed(python: Path) -> dict[str, Any]:
    found: dict[str, int] = json.loads(_output(python, _INSTALLED))
    largest = sorted(found, key=lambda name: -found[name])
    return {
        "packages": len(found),
        "bytes": sum(found.values()),
        "largest_bytes": {name: found[name] for name in largest[:5]},
    }


def _imports(pythons: dict[str, Path], times: int) -> dict[str, dict[str, float]]:
    """Medians over processes; the contenders take turns, and their first import is not counted."""
    found: dict[str, list[list[float]]] = {name: [] for name in pythons}
    for turn in range(times + 1):
        for name, python in pythons.items():
            words = _output(python, _IMPORTED, INSTALLATIONS[name].module).split()
            if turn:
                found[name].append([float(word) for word in words])
    return {
        name: {
            "import_seconds": statistics.median(one[0] for one in runs),
            "import_seconds_least": min(one[0] for one in runs),
            "rss_bytes": statistics.median(one[1] for one in runs),
        }
        for name, runs in found.items()
    }


def _output(python: Path, code: str, *arguments: str) -> str:
    """What code prints; -I keeps this checkout out of the import path."""
    return subprocess.run(
        [python, "-I", "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    columns = ("packages", "MB", "import s", "RSS MB", "largest")
    lines = [f"{'':24}" + "".join(f"{column:>10}" for column in columns)]
    for name, one in result["installations"].items():
        largest, size = next(iter(one["largest_bytes"].items()))
        lines.append(
            f"{name:24}{one['packages']:10}{one['bytes'] / _MEGABYTE:10,.0f}{one['import_seconds']:10.2f}"
            f"{one['rss_bytes'] / _MEGABYTE:10,.0f}   {largest} {size / _MEGABYTE:,.0f}"
        )
    return "\n".join(lines)
