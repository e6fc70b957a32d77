"""JSON files, atomic writes and the cache folder."""

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
"""Suffix of temporary files and folders. A process that is killed leaves them on disk."""


def cache_folder() -> Path:
    """Return the cache folder: KOE5_ONNX_CACHE if set, otherwise the platform's default.

    Raises:
        RuntimeError: The default is a folder in the user's home folder, and the user has none.
    """
    if named := os.environ.get("KOE5_ONNX_CACHE"):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "koe5-onnx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "koe5-onnx"


def read_json(file: Path, error: type[Exception], advice: str, kind: type = dict) -> Any:
    """Parse a JSON file and check the type of its content. The arguments are as in `parse_json`."""
    return parse_json(file.read_bytes(), file, error, advice, kind)


def parse_json(content: bytes, file: object, error: type[Exception], advice: str, kind: type = dict) -> Any:
    """Parse JSON and check its type.

    Args:
        content: The JSON.
        file: Name of the file, for messages.
        error: Class of the exception to raise.
        advice: What the user can do, added to the message.
        kind: Expected type, `dict` or `list`.

    Raises:
        Exception: The file is not JSON, or its content is not of type `kind`; of the class `error`.
    """
    try:
        data = json.loads(content.decode())
    except (ValueError, RecursionError) as problem:
        raise error(f"{file} is not JSON ({problem}): {advice}") from problem
    if not isinstance(data, kind):
        raise error(f"{file} contains a {type(data).__name__} instead of a {kind.__name__}: {advice}")
    return data


def write_json(file: Path, data: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_path(file) as temporary:
        temporary.write_bytes(json_bytes(data))


def json_bytes(data: Any) -> bytes:
    """Return data as the content of a JSON file."""
    return (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode()


def cache_json(file: Path, data: Any) -> None:
    """Write a JSON file, and ignore errors of the file system. Used for files in the cache."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, data)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to `path` when the block ends, or removed on any error.

    The caller creates a file or a folder at the temporary path. A file is synced to disk and may replace an
    existing file. A folder requires that `path` does not exist.

    Args:
        path: Final path. If it is a symbolic link, its target is replaced.

    Raises:
        OSError: Writing failed. An error about the temporary path names `path` instead.
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
        if os.name == "posix":  # Windows cannot open a folder
            _sync(target.parent, os.O_RDONLY)
    except OSError as error:
        if error.filename not in (None, str(temporary)) or not error.errno:
            raise
        # If the disk is full, the error has no file name. Users would not know that of the temporary file.
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
