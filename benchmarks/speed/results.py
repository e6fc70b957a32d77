"""Results as JSON: the machine, what was measured, every round; written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from koe5_onnx import InputError
from koe5_onnx.engine.machine import cpu_features, cpu_name, usable_cores

FORMAT = 1


def machine() -> dict[str, Any]:
    """What a figure depends on, beside the software."""
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
    """The lines that begin every result."""
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
    """Write a result under a temporary name and rename it."""
    write_text(file, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}-{os.getpid()}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        InputError: It is missing, not JSON, or of another format.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing: expected a file that --json wrote") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): expected a file that --json wrote") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{file} is no result of format {FORMAT}: measure again with --json")
    return found


def _commit() -> str | None:
    """The commit of this checkout; None outside one."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
