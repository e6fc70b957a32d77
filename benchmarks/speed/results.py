"""Write and read results as JSON, with the machine and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from koe5_onnx import InputError, files
from koe5_onnx.engine.machine import cpu_features, cpu_name, usable_cores
from koe5_onnx.files import atomic_path, read_json

FORMAT = 1


def machine() -> dict[str, Any]:
    """Describe the machine and the software that results depend on."""
    cores = usable_cores()
    return {
        "cpu": cpu_name(),
        "instructions": list(cpu_features()),
        "cores": cores.count,
        "cores_reason": cores.reason,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def head(benchmark: str, threads: int, checkpoint: Path) -> dict[str, Any]:
    """Return the fields that begin every result."""
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine(),
        "threads": threads,
        "checkpoint": checkpoint.name,
    }


def write_json(file: Path, result: dict[str, Any]) -> None:
    """Write a result, creating its folder if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, result)


def write_text(file: Path, text: str) -> None:
    """Write a text file, creating its folder if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_result(file: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        InputError: The file is not JSON, or has another format.
        OSError: The file cannot be read.
    """
    found: dict[str, Any] = read_json(file, InputError, "measure again with --json")
    if found.get("format") != FORMAT:
        raise InputError(f"{file} is not a result of format {FORMAT}. Measure again with --json")
    return found


def _commit() -> str | None:
    """Return the commit of this checkout, or None outside one."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
