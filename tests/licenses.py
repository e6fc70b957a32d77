"""Write docs/licenses.md, the packages and licenses of each extra; run it with `make licenses`.

It inspects the current environment: importlib.metadata for the dependencies, pip-licenses for the licenses.
tests/dist/test_licenses.py compares the page with the environment of the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/licenses.md"
ALWAYS = "always"
"""Key of the dependencies that every installation has."""
_OURS = "koe5-onnx-kernels"

_HEAD = """# Licenses of the dependencies

This page lists the packages that koe5-onnx and most of its extras install, with their licenses. koe5-onnx,
koe5-onnx-kernels and the weights of KoE5 are under the MIT license. The table has the versions of
constraints.txt on Linux x86-64, and the license in the metadata of each package. The last column names the
extras that require the package; "always" means every installation. `make licenses` writes this page.

The wheels of koe5-onnx-kernels contain parts of LLVM's libc++, libc++abi, libunwind and compiler-rt, linked
statically. Their license is Apache-2.0 with the
[LLVM exception](https://llvm.org/docs/DeveloperPolicy.html#new-llvm-project-license-framework). Kernels that
GCC compiled on your machine contain parts of libstdc++ and libgcc instead. Their license is GPL-3.0 with the
[GCC Runtime Library Exception](https://www.gnu.org/licenses/gcc-exception-3.1.html). Both exceptions impose
no conditions on users and distributors of the compiled library.

| package | version | license | extra |
| --- | --- | --- | --- |
"""


def main() -> None:
    """Write the page."""
    wanted = requirements()
    listed = {extra: names for extra, asked in wanted.items() if (names := closure(asked)) is not None}
    text = _HEAD + "".join(_rows(listed))
    if absent := sorted(wanted.keys() - listed.keys()):
        asked = (f"{extra} ({', '.join(map(str, wanted[extra]))})" for extra in absent)
        text += "\nThe table does not contain the packages of these extras: "
        text += f"{'; '.join(asked)}.\n"
    PAGE.write_text(text, encoding="utf-8")


def requirements() -> dict[str, list[Requirement]]:
    """Return the requirements of each extra in pyproject.toml, and those of every installation (`ALWAYS`)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {ALWAYS: project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in asked.items()}


def closure(asked: list[Requirement]) -> set[str] | None:
    """Return the names of all packages that `asked` installs, or None if one is not installed here."""
    found: dict[str, set[str]] = {}
    waiting = list(asked)
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), {"", *requirement.extras}
        if requirement.name == _OURS or extras <= found.get(name, set()):
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue  # for another platform
        found.setdefault(name, set()).update(extras)
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:
            return None
        waiting += [needed for line in lines if (needed := _needed(line, extras))]
    return set(found)


def _needed(line: str, extras: set[str]) -> Requirement | None:
    """Return a requirement without its marker if the marker holds for one of the extras."""
    requirement = Requirement(line)
    if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
        return None
    requirement.marker = None
    return requirement


def _rows(listed: dict[str, set[str]]) -> list[str]:
    """Return a row per package, with the extras that install it."""
    of = _licenses()
    rows = []
    for name in sorted(set().union(*listed.values())):
        extras = [extra for extra, names in listed.items() if name in names]
        users = ALWAYS if ALWAYS in extras else ", ".join(extras)
        version, terms = of[name]
        rows.append(f"| {name} | {version} | {terms} | {users} |\n")
    return rows


def _licenses() -> dict[str, tuple[str, str]]:
    """Return version and license by package, as found by pip-licenses in this environment."""
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--with-system", "--format=json"]
    found = json.loads(subprocess.check_output(command))
    return {
        canonicalize_name(one["Name"]): (one["Version"], one["License"].partition("\n")[0]) for one in found
    }


if __name__ == "__main__":
    main()
