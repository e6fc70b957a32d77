"""Detect the usable CPU cores, the CPU's name and its instruction sets, on Linux from /proc and /sys."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from koe5_onnx.errors import InputError

DOT_PRODUCTS = ("amx_int8", "avx512_vnni", "avx_vnni", "asimddp", "i8mm")
"""CPU flags (x86 and ARM) of the instructions that add products of bytes in 32 bits."""

INT8_INSTRUCTIONS = (*DOT_PRODUCTS, "avx2")
"""CPU flags of the instructions with which int8 artifacts are fast."""

THREADS_VARIABLE = "KOE5_ONNX_THREADS"

_EVERYWHERE = ("sse2", "asimd")
"""CPU flags that every 64-bit CPU has: sse2 on x86, asimd on ARM."""

_SHOWN = (*DOT_PRODUCTS, "amx_bf16", "avx512_bf16", "avx512f", "avx2", "sve", "bf16", *_EVERYWHERE)


def is_x86_without_dot_products(features: Sequence[str]) -> bool:
    """Return True if the CPU is known to be an x86 CPU with none of DOT_PRODUCTS."""
    return "sse2" in features and not set(features) & set(DOT_PRODUCTS)


@dataclass(frozen=True)
class Cores:
    """Number of threads that this process should use, with the reason."""

    count: int
    reason: str


def usable_cores(root: Path = Path("/")) -> Cores:
    """Count the physical cores within the CPU affinity and the cgroup's CPU quota, at least 1.

    ONNX Runtime's default ignores quotas, so it starts too many threads in containers. A fractional quota
    above 1 is rounded down, so that the kernel does not throttle the process. The environment variable
    KOE5_ONNX_THREADS replaces the result, for example in containers with a CPU request but no limit.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files

    Args:
        root: Folder that contains proc and sys; tests pass another one.

    Raises:
        InputError: KOE5_ONNX_THREADS is not a whole number above 0.
    """
    if given := os.environ.get(THREADS_VARIABLE, "").strip():
        if not given.isdecimal() or int(given) < 1:
            raise InputError(f"{THREADS_VARIABLE} is {given!r}: expected a whole number above 0")
        return Cores(int(given), f"{THREADS_VARIABLE} is set")
    allowed = _allowed_cpus()
    physical = len({_core_of(cpu, root) for cpu in allowed})
    reason = f"{len(allowed)} CPUs allowed, {physical} physical cores"
    quota = _cgroup_quota(root)
    if quota is None:
        return Cores(physical, f"{reason}, no cgroup quota")
    return Cores(max(1, min(physical, int(quota))), f"{reason}, cgroup quota {quota:g} CPUs")


def cpu_features(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the flags in `_SHOWN` that this CPU has, as named by Linux; empty if unknown."""
    info = root / "proc/cpuinfo"
    if not info.is_file():
        return ()
    flags: set[str] = set()
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags.update(value.split())
    return tuple(name for name in _SHOWN if name in flags)


def cpu_name(root: Path = Path("/")) -> str:
    """Return the CPU's model name, or the architecture if it is unknown."""
    info = root / "proc/cpuinfo"
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _allowed_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _core_of(cpu: int, root: Path) -> str:
    """Return an identifier of the physical core of `cpu`: the list of its hyper-threads if it is known."""
    siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return siblings.read_text().strip() if siblings.is_file() else str(cpu)


def _cgroup_quota(root: Path) -> float | None:
    """Return the lowest CPU quota of the process's cgroups, in CPUs; None if there is no quota."""
    quotas = [quota for folder in _cgroup_folders(root) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Yield the process's cgroup folders and their parents, for cgroup v2 and the cpu controller of v1."""
    membership = root / "proc/self/cgroup"
    if not membership.is_file():
        return
    for line in membership.read_text().splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        relative = Path(path.lstrip("/"))
        yield from (mount / part for part in (relative, *relative.parents))


def _quota_of(folder: Path) -> float | None:
    v2, v1 = folder / "cpu.max", folder / "cpu.cfs_quota_us"
    if v2.is_file():
        quota, period = v2.read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    if v1.is_file():
        quota_us = int(v1.read_text())
        return None if quota_us <= 0 else quota_us / int((folder / "cpu.cfs_period_us").read_text())
    return None
