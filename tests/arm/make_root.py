"""Make a small Debian system with Python: python tests/arm/make_root.py FOLDER [arm64|amd64] [RELEASE].

Afterwards `FOLDER/python` runs the system's Python, with the packages in FOLDER/site. The defaults are an
emulated 64-bit ARM CPU and the Debian release of this machine. An older release has an older C library.
Nothing is installed on this machine. Requires Debian 12 or later on x86-64, but not root.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

TRIPLETS = {"arm64": "aarch64-linux-gnu", "amd64": "x86_64-linux-gnu"}
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
CORES = 2
CPUINFO = """\
processor\t: {core}
Features\t: fp asimd atomics fphp asimdhp cpuid asimdrdm asimddp i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1
"""
"""/proc/cpuinfo of a Neoverse V1. With the file of an x86 CPU, the import of ONNX Runtime's wheel crashes."""


def main(folder: Path, architecture: str = "arm64", release: str | None = None) -> None:
    """Download and extract everything, and write the wrapper."""
    shutil.rmtree(folder, ignore_errors=True)
    state, root = folder / "apt", folder / "root"
    options = apt_options(architecture, state, release)
    (python,) = dependencies(options, r"python3\.\d+-minimal", "python3-minimal")
    version = python.removesuffix("-minimal")
    packages = [python, f"lib{python}", f"lib{version}-stdlib"]
    libraries = dependencies(options, r"lib\S+|zlib1g", *packages)
    extract({*packages, *libraries, "libc6", "libgcc-s1", "libstdc++6", "libzstd1"}, options, state, root)
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")  # the packages since Debian 13 have no files in /lib
    command = [str(root / "usr/bin" / version)]
    if architecture == "arm64":
        write_system_files(root)
        extract(["qemu-user-static"], apt_options("amd64", folder / "apt-tools"), folder, folder / "tools")
        emulator = folder / "tools/usr/bin/qemu-aarch64-static"
        # The wrapper is also the emulated `sys.executable`, which child processes start.
        command = [str(emulator), "-cpu", "max", "-L", str(root), "-0", str(folder / "python"), *command]
    else:
        paths = [str(root / where / TRIPLETS[architecture]) for where in ("lib", "usr/lib")]
        loader = root / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
        command = [str(loader), "--library-path", ":".join(paths), *command]
    write_wrapper(folder, command)


def apt_options(architecture: str, state: Path, release: str | None = None) -> list[str]:
    """Download package lists to `state`, and return the options with which apt-get uses them."""
    (state / "lists/partial").mkdir(parents=True)
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "Dir::Cache": state,
        "Dir::State": state,
        "Dir::State::status": "/dev/null",
    }
    if release is not None:
        sources = state / "sources.list"
        sources.write_text(f"deb [signed-by={KEYS}] {mirror()} {release} main\n", "utf-8")
        settings |= {"Dir::Etc::SourceList": sources, "Dir::Etc::SourceParts": "/dev/null"}
    options = [f"-o{name}={value}" for name, value in settings.items()]
    subprocess.run(["apt-get", "--quiet=2", *options, "update"], check=True)
    return options


def mirror() -> str:
    """Return the address from which this machine downloads Debian's packages."""
    targets = ("Created-By: Packages", "Label: Debian", "Component: main")
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", *targets]
    return subprocess.check_output(command, text=True).split()[0]


def dependencies(options: Iterable[str], name: str, *packages: str) -> set[str]:
    """Return the direct dependencies whose whole name matches the pattern."""
    text = subprocess.check_output(["apt-cache", *options, "depends", "--important", *packages], text=True)
    return set(re.findall(rf"Depends: ({name})$", text, re.M))


def extract(packages: Iterable[str], options: Iterable[str], downloads: Path, root: Path) -> None:
    """Download packages to a folder and extract them to `root`."""
    subprocess.run(["apt-get", "--quiet=2", *options, "download", *packages], check=True, cwd=downloads)
    for package in downloads.glob("*.deb"):
        subprocess.run(["dpkg", "--extract", package, root], check=True)


def write_system_files(root: Path) -> None:
    """Write the files that describe the CPU."""
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("\n".join(CPUINFO.format(core=core) for core in range(CORES)), "utf-8")
    cpus = root / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    for name in ("possible", "present"):
        (cpus / name).write_text(f"0-{CORES - 1}\n", "utf-8")


def write_wrapper(folder: Path, command: Sequence[str]) -> None:
    """Write FOLDER/python, which runs `command`."""
    settings = {"PYTHONHOME": folder / "root/usr", "PYTHONPATH": folder / "site"}
    variables = [f"{name}={value}" for name, value in settings.items()]
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/sh\nexec env {shlex.join([*variables, *command])} "$@"\n', "utf-8")
    wrapper.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *sys.argv[2:])
