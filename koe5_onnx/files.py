"""JSON files, files that are written completely or not at all, and the cache folder."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""Suffix of temporary files, which only a killed process leaves behind."""


def cache_folder() -> Path:
    """Return the folder of this project's cache: KOE5_ONNX_CACHE, else the system's usual place.

    Raises:
        RuntimeError: No folder is named and the user has no home folder.
    """
    if named := os.environ.get("KOE5_ONNX_CACHE"):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "koe5-onnx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "koe5-onnx"


def read_json(file: Path, error: type[Exception], advice: str, kind: type = dict) -> Any:
    """Parse a JSON file that holds a `kind`.

    Raises:
        Exception: An `error` that ends with `advice`: the file is not JSON, or holds something else.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise error(f"{file} is not JSON ({problem}): {advice}") from problem
    if not isinstance(data, kind):
        raise error(f"{file} holds a {type(data).__name__}, expected a {kind.__name__}: {advice}")
    return data


def write_json(file: Path, data: Any) -> None:
    """Write a JSON file completely or not at all."""
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def cache_json(file: Path, data: Any) -> None:
    """Write a JSON file of the cache, if it can be written; without the file, work is only repeated."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, data)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` at the end of the block, or is removed on any error.

    The caller writes a file or makes a folder there. A file replaces an earlier one, synced to disk; a folder
    is only renamed to a name that is free.

    Args:
        path: A symbolic link stays one; the file that it points to is replaced.

    Raises:
        OSError: With the name `path`, never that of the temporary file.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        yield temporary
        if temporary.is_dir():
            temporary.rename(target)
        else:
            _sync(temporary, os.O_RDWR)
            temporary.replace(target)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _sync(target.parent, os.O_RDONLY)
    except OSError as error:
        if error.filename not in (None, str(temporary)) or not error.errno:
            raise
        # A full disk names no file, and the temporary name says nothing to the user.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
