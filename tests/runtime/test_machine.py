"""Cores and CPU features, read from synthetic trees of /proc and /sys."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from koe5_onnx import InputError
from koe5_onnx.engine.machine import Cores, cpu_features, cpu_name, usable_cores

X86 = """\
processor\t: 0
model name\t: Test CPU @ 3.00GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_int8
processor\t: 1
model name\t: Test CPU @ 3.00GHz
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp i8mm bf16 sve\n"


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root


def siblings(*lists: str) -> dict[str, str]:
    """Return topology files; the n-th argument is the sibling list of CPU n."""
    folder = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return {folder.format(cpu): f"{cpus}\n" for cpu, cpus in enumerate(lists)}


def v2(path: str, quotas: dict[str, str]) -> dict[str, str]:
    """Return a cgroup v2 tree with the process in `path`, and quotas by folder."""
    files = {f"sys/fs/cgroup/{folder}/cpu.max": quota for folder, quota in quotas.items()}
    return {"proc/self/cgroup": f"0::{path}\n", **files}


def v1(path: str, quotas: dict[str, tuple[int, int]]) -> dict[str, str]:
    """Return a cgroup v1 tree with the cpu controller and others."""
    files = {"proc/self/cgroup": f"11:memory:/elsewhere\n4:cpu,cpuacct:{path}\n1:name=systemd:/elsewhere\n"}
    for folder, (quota_us, period_us) in quotas.items():
        files[f"sys/fs/cgroup/cpu/{folder}/cpu.cfs_quota_us"] = f"{quota_us}\n"
        files[f"sys/fs/cgroup/cpu/{folder}/cpu.cfs_period_us"] = f"{period_us}\n"
    return files


@pytest.mark.parametrize(
    ("files", "count", "reason"),
    [
        pytest.param({}, 8, "no cgroup quota", id="no /proc at all"),
        pytest.param(v2("/", {}), 8, "no cgroup quota", id="v2 without quota file"),
        pytest.param(v2("/", {".": "max 100000\n"}), 8, "no cgroup quota", id="v2 unlimited"),
        pytest.param(v2("/", {".": "300000 100000\n"}), 3, "cgroup quota 3 CPUs", id="v2"),
        pytest.param(v2("/", {".": "250000 100000\n"}), 2, "quota 2.5 CPUs", id="v2 rounded down"),
        pytest.param(v2("/", {".": "50000 100000\n"}), 1, "quota 0.5 CPUs", id="v2 never below one"),
        pytest.param(v2("/", {".": "6400000 100000\n"}), 8, "quota 64 CPUs", id="v2 above the machine"),
        pytest.param(
            v2("/a/b", {"a": "200000 100000\n", "a/b": "400000 100000\n"}),
            2,
            "quota 2 CPUs",
            id="v2 parent tighter",
        ),
        pytest.param(
            v2("/a/b", {".": "700000 100000\n", "a/b": "max 100000\n"}),
            7,
            "quota 7 CPUs",
            id="v2 at the root",
        ),
        pytest.param(v2("/a", {"other": "100000 100000\n"}), 8, "no cgroup quota", id="v2 of another group"),
        pytest.param(v1("/", {".": (-1, 100000)}), 8, "no cgroup quota", id="v1 unlimited"),
        pytest.param(v1("/", {".": (450000, 100000)}), 4, "quota 4.5 CPUs", id="v1"),
        pytest.param(v1("/docker/x", {".": (200000, 50000)}), 4, "quota 4 CPUs", id="v1 path of the host"),
        pytest.param(
            v1("/a/b", {"a": (500000, 100000), "a/b": (300000, 100000)}),
            3,
            "quota 3 CPUs",
            id="v1 child tighter",
        ),
        pytest.param(
            siblings(*["0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7"]), 4, "4 physical", id="threads"
        ),
        pytest.param(
            {**siblings(*["0,4", "1,5", "2,6", "3,7"] * 2), **v2("/", {".": "300000 100000\n"})},
            3,
            "4 physical cores, cgroup quota 3 CPUs",
            id="threads and quota",
        ),
    ],
)
def test_usable_cores(tmp_path, files, count, reason):
    cores = usable_cores(write(tmp_path, files))
    assert cores.count == count
    assert cores.reason.startswith("8 CPUs allowed")
    assert reason in cores.reason


def test_affinity_counts_the_allowed_cores_only(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4})
    root = write(tmp_path, siblings("0-1", "0-1", "2-3", "2-3", "4-5", "4-5"))
    assert usable_cores(root).count == 2


def test_a_number_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("KOE5_ONNX_THREADS", " 3 ")
    assert usable_cores(write(tmp_path, siblings("0-1", "0-1"))) == Cores(3, "KOE5_ONNX_THREADS is set")


@pytest.mark.parametrize("given", ["0", "-1", "2.5", "all"])
def test_a_number_that_is_none(monkeypatch, given):
    monkeypatch.setenv("KOE5_ONNX_THREADS", given)
    with pytest.raises(InputError, match=f"KOE5_ONNX_THREADS is '{given}': expected a whole number above 0"):
        usable_cores()


def test_a_system_without_affinity(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(tmp_path).count == 6


def test_features_and_name_on_x86(tmp_path):
    root = write(tmp_path, {"proc/cpuinfo": X86})
    assert cpu_features(root) == ("amx_int8", "avx512_vnni", "avx512f", "avx2", "sse2")
    assert cpu_name(root) == "Test CPU @ 3.00GHz"


def test_features_on_arm(tmp_path):
    assert cpu_features(write(tmp_path, {"proc/cpuinfo": ARM})) == ("asimddp", "i8mm", "sve", "bf16", "asimd")


def test_a_system_without_cpuinfo(tmp_path):
    assert cpu_features(tmp_path) == ()
    assert cpu_name(tmp_path) == (platform.processor() or platform.machine())


def test_this_machine():
    assert usable_cores().count >= 1
    assert cpu_name()
