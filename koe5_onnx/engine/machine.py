"""What this machine offers: cores that may be used, and instructions that matter for speed.

Reads the kernel's files only; decides nothing about sessions (session.py does).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INT8_INSTRUCTIONS = ("amx_int8", "avx512_vnni", "avx_vnni", "asimddp", "i8mm")
"""Kernel flags of the dot products that int8 artifacts are fast and exact with (x86 and ARM)."""

_SHOWN = (*INT8_INSTRUCTIONS, "amx_bf16", "avx512_bf16", "avx512f", "avx2", "sve", "bf16")


@dataclass(frozen=True)
class Cores:
    """How many threads this process should use, and why."""

    count: int
    reason: str


def usable_cores(root: Path = Path("/")) -> Cores:
    """Physical cores within the CPU affinity and the cgroup's CPU quota, at least 1.

    The host's core count is no guide in a container: ONNX Runtime's own default ignores quotas.
    A fractional quota is rounded down, so that the kernel never throttles the process.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files

    Args:
        root: Where /proc and /sys are looked up.
    """
    allowed = _allowed_cpus()
    physical = len({_core_of(cpu, root) for cpu in allowed})
    reason = f"{len(allowed)} CPUs allowed, {physical} physical cores"
    quota = _cgroup_quota(root)
    if quota is None:
        return Cores(physical, f"{reason}, no cgroup quota")
    return Cores(max(1, min(physical, int(quota))), f"{reason}, cgroup quota {quota:g} CPUs")


def cpu_features(root: Path = Path("/")) -> tuple[str, ...]:
    """Those instruction set extensions of this CPU that matter here, by the kernel's names."""
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
    """The CPU's name as the kernel gives it, else the architecture."""
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
    """A name of the physical core that `cpu` belongs to: the list of its hyper-threads."""
    siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return siblings.read_text().strip() if siblings.is_file() else str(cpu)


def _cgroup_quota(root: Path) -> float | None:
    """The tightest CPU quota of this process' cgroups, in CPUs; None where nothing limits it."""
    quotas = [quota for folder in _cgroup_folders(root) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """The process' cgroup folders and their parents, for cgroup v2 and the cpu controller of v1."""
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
