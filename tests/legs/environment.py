"""Virtual environments for the legs, each made from nothing: leftovers cannot help a test pass.

And the versions that go into them, where a leg needs others than constraints.txt.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""


class Environment:
    """A fresh virtual environment, without pip: the one that the leg was started in has it.

    Args:
        folder: Where it goes; whatever is there is removed.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, clear=True)
        self._bin = folder / "bin"

    def install(self, *arguments: str | Path) -> None:
        """Run pip install. Wheels only, so that nobody needs a compiler; the project itself is exempt.

        Not compiled: what a leg imports is compiled and kept then, and most of PyTorch never is.
        """
        pip = (sys.executable, "-m", "pip", "--python", self._bin / "python", "install")
        run(*pip, "--quiet", "--no-compile", "--only-binary=:all:", *arguments)

    def run(self, command: str, *arguments: str | Path, cwd: Path = ROOT) -> None:
        """Run one of the environment's commands; ends the leg where it fails."""
        run(self._bin / command, *arguments, cwd=cwd)

    def where(self, module: str, cwd: Path) -> str:
        """The file that `module` would be imported from; empty where there is none."""
        code = "import sys, importlib.util as u; s = u.find_spec(sys.argv[1]); print(s.origin if s else '')"
        command = [str(self._bin / "python"), "-c", code, module]
        return subprocess.check_output(command, cwd=cwd, env=_env(), text=True).strip()


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Show a command and run it.

    Raises:
        SystemExit: It failed.
    """
    line = shlex.join(str(part) for part in command)
    sys.stdout.write(f"+ {line}\n")
    sys.stdout.flush()
    if status := subprocess.run(command, check=False, cwd=cwd, env=_env()).returncode:
        sys.exit(f"exit status {status}: {line}")


def find_compiler(undone: str) -> str | None:
    """CXX or else c++; None where it is not there, and says what is not done for want of it."""
    name = os.environ.get("CXX", "c++")
    if shutil.which(name) is not None:
        return name
    sys.stdout.write(f"{undone}, {name} is not there (g++ 12 or clang 15, or CXX=...)\n")
    return None


def other_pins(packages: Iterable[str]) -> list[str]:
    """The lines of constraints.txt for other packages than these, which a leg pins itself."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = [line for line in lines if "==" in line and not line.startswith("#")]
    return [line for line in named if normal_name(line.partition("==")[0]) not in packages]


def normal_name(package: str) -> str:
    """Source: https://packaging.python.org/en/latest/specifications/name-normalization/."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _env() -> dict[str, str]:
    """This process' environment without PYTHONPATH and its like, which would let the source in."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
