"""Extract Debian's Python for 64-bit ARM, an emulator and a compiler: python tests/arm/make_root.py FOLDER.

Afterwards, FOLDER/python runs Python under QEMU with the packages in FOLDER/site, and FOLDER/tools contains a
C++ cross compiler. Nothing is installed on the system. Requires Debian 12 or later on x86-64, but not root.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

LIBRARIES = (
    *("libbz2-1.0", "libc6", "libexpat1", "libffi8", "libgcc-s1", "liblzma5"),
    *("libsqlite3-0", "libssl3", "libstdc++6", "libuuid1", "zlib1g"),
)
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


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    state, root = folder / "apt-arm64", folder / "root"
    options = apt_options("arm64", state)
    text = subprocess.check_output(["apt-cache", *options, "depends", "python3-minimal"], text=True)
    python = re.findall(r"python3\.\d+", text)[0]
    extract(
        [*LIBRARIES, f"{python}-minimal", f"lib{python}-minimal", f"lib{python}-stdlib"], options, state, root
    )
    write_system_files(root)
    write_wrapper(folder, python)
    extract_tools(folder / "apt-amd64", folder / "tools")


def extract_tools(state: Path, tools: Path) -> None:
    """Extract the emulator and the compiler. Make the linker find the C library in the extracted folder."""
    options = apt_options("amd64", state)
    command = ["apt-cache", *options, "depends", "--recurse", "--important", "g++-aarch64-linux-gnu"]
    packages = set(
        re.findall(
            r"^\S*(?:aarch64-linux-gnu|arm64-cross)\S*$", subprocess.check_output(command, text=True), re.M
        )
    )
    extract(["qemu-user-static", *sorted(packages)], options, state, tools)
    libraries = tools / "usr/aarch64-linux-gnu/lib"
    script = libraries / "libc.so"
    script.write_text(script.read_text("utf-8").replace("/usr/aarch64-linux-gnu/lib/", ""), "utf-8")


def apt_options(architecture: str, state: Path) -> list[str]:
    """Download package lists to `state`, and return options with which apt uses only these lists."""
    (state / "lists/partial").mkdir(parents=True)
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "Dir::Cache": state,
        "Dir::State": state,
        "Dir::State::status": "/dev/null",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    subprocess.run(["apt-get", "--quiet=2", *options, "update"], check=True)
    return options


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


def write_wrapper(folder: Path, python: str) -> None:
    """Write FOLDER/python, which is also `sys.executable` of the emulated Python, for child processes."""
    wrapper, root = folder / "python", folder / "root"
    settings = ["-E", f"PYTHONHOME={root / 'usr'}", "-E", f"PYTHONPATH={folder / 'site'}"]
    qemu = folder / "tools/usr/bin/qemu-aarch64-static"
    emulator = [str(qemu), "-cpu", "max", "-L", str(root), "-0", str(wrapper), *settings]
    command = shlex.join([*emulator, str(root / "usr/bin" / python)])
    wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n', "utf-8")
    wrapper.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
