"""Cached SHA-256 hashes of files, so that a 500 MB artifact is not hashed at every start.

A cached hash is valid while the size, device, inode, mtime and ctime of the file are unchanged. Each hash is
in a small JSON file in the user's cache folder. If that folder is not writable, new hashes are not cached.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from koe5_onnx.files import cache_folder, cache_json

_WORTH_REMEMBERING = 1 << 20
"""Minimum size of a file, in bytes, for caching its hash. Smaller files are hashed quickly."""
_SETTLED_NS = 2_000_000_000
"""Minimum age of a file, in nanoseconds, for caching its hash. A newer file could still change without
getting another timestamp."""


def sha256_of(path: Path, *, remember: bool = True) -> str:
    """Return the SHA-256 of a file as hexadecimal digits.

    Args:
        path: The file.
        remember: Use the cached hash if the file is unchanged, and cache a newly computed one.

    Raises:
        OSError: The file cannot be read.
    """
    before = _state(path)
    cache_file = _cache_file(path) if remember and before["size"] >= _WORTH_REMEMBERING else None
    if cache_file is not None and (known := _read(cache_file, before)) is not None:
        return known
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    settled = time.time_ns() - max(before["mtime_ns"], before["ctime_ns"]) > _SETTLED_NS
    if cache_file is not None and settled and _state(path) == before:
        cache_json(cache_file, {**before, "sha256": digest})
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


def _cache_file(path: Path) -> Path | None:
    try:
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        return cache_folder() / "sha256" / f"{name[:32]}.json"
    except (OSError, RuntimeError):  # no home folder, or a symlink loop
        return None


def _read(cache_file: Path, state: dict[str, int]) -> str | None:
    try:
        found = json.loads(cache_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or {**state, "sha256": found.get("sha256")} != found:
        return None
    return found["sha256"] if isinstance(found["sha256"], str) else None
