"""The lowest leg: are the lower bounds in pyproject.toml true?

It turns every `>=X` of the dependencies and of EXTRAS into `==X`, installs exactly that and runs the tests of
the runtime, the export, the server, bulk and, where a compiler is, the fused kernels. What pyproject.toml
does not name stays as in constraints.txt.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from environment import ROOT, Environment, normal_name, other_pins
from packaging.requirements import Requirement

EXTRAS = ("cpu", "export", "reference", "serve", "bulk")


def main() -> None:
    """Run the leg."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pins = lowest_pins([*project["dependencies"], *(bound for extra in EXTRAS for bound in extras[extra])])
    sys.stdout.write(f"lowest: {' '.join(pins.values())}\n")
    lowest = Environment(ROOT / ".venv-lowest")
    with tempfile.TemporaryDirectory(prefix="koe5-lowest-") as folder:
        constraints = Path(folder) / "lowest.txt"
        constraints.write_text("\n".join([*pins.values(), *other_pins(pins)]), encoding="utf-8")
        lowest.install("-c", constraints, "-e", f".[{','.join(EXTRAS)}]", "httpx", "hypothesis", "pytest")
    tests = ["tests/runtime", "tests/export", "tests/serve", "tests/bulk"]
    if shutil.which("c++"):
        lowest.install("--no-deps", "./kernels")
        tests.append("tests/kernels")
    lowest.run("pytest", *tests)


def lowest_pins(requirements: Iterable[str]) -> dict[str, str]:
    """Package to its lowest version, as `numpy` to `numpy==1.26`.

    Raises:
        SystemExit: A requirement has no lower bound, or more than one.
    """
    pins = {}
    for requirement in map(Requirement, requirements):
        lowest = [bound.version for bound in requirement.specifier if bound.operator in {">=", "=="}]
        if len(lowest) != 1:
            sys.exit(f"pyproject.toml: expected one lower bound in '{requirement}', found {len(lowest)}")
        pins[normal_name(requirement.name)] = f"{requirement.name}=={lowest[0]}"
    return pins


if __name__ == "__main__":
    main()
