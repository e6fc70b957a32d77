"""SHA-256 of files, remembered: an artifact of half a gigabyte is read through once, not at each start.

What is remembered stands for a file only while its size, inode and both its times are the same. The notes lie
under the user's cache folder, one small file each; where they cannot be written, files are read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from koe5_onnx.files import cache_folder, cache_json

_WORTH_REMEMBERING = 1 << 20
"""Smaller files are read faster than their notes."""
_SETTLED_NS = 2_000_000_000
"""A file changed more recently could change again within the resolution of its times."""


def sha256_of(path: Path, *, remember: bool = True) -> str:
    """SHA-256 of a file as hexadecimal digits.

    Args:
        path: The file.
        remember: Take what an earlier call found if the file is the same since, and note what is found.

    Raises:
        OSError: It cannot be read.
    """
    before = _state(path)
    note = _note_of(path) if remember and before["size"] >= _WORTH_REMEMBERING else None
    if note is not None and (known := _read(note, before)) is not None:
        return known
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    settled = time.time_ns() - max(before["mtime_ns"], before["ctime_ns"]) > _SETTLED_NS
    if note is not None and settled and _state(path) == before:
        cache_json(note, {**before, "sha256": digest})
    return digest


def _state(path: Path) -> dict[str, int]:
    found = path.stat()
    return {
        "size": found.st_size,
        "inode": found.st_ino,
        "device": found.st_dev,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def _note_of(path: Path) -> Path | None:
    try:
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        return cache_folder() / "sha256" / f"{name[:32]}.json"
    except (OSError, RuntimeError):  # no home folder, or a loop of links
        return None


def _read(note: Path, state: dict[str, int]) -> str | None:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or {**state, "sha256": found.get("sha256")} != found:
        return None
    return found["sha256"] if isinstance(found["sha256"], str) else None
