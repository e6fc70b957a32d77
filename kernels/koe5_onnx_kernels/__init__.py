"""Location and availability of the shared library with the fused operators.

The library contains custom operators for ONNX Runtime (domain "koe5"). If `unavailable()` is None, pass
`library()` to `SessionOptions.register_custom_ops_library`. This module does not import ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

__all__ = ["OPSET_VERSION", "level", "library", "packed_layout", "sharing_problem", "unavailable"]

OPSET_VERSION = 4
"""Version of the operator set "koe5" that this package implements."""

_FILE = "libkoe5_kernels.so"


def library() -> Path:
    """Return the path of the shared library for `SessionOptions.register_custom_ops_library`.

    Raises:
        FileNotFoundError: The library is missing from the installation.
    """
    path = Path(__file__).with_name(_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Reinstall koe5-onnx-kernels")
    return path


def unavailable() -> str | None:
    """Return the reason in one line if this machine cannot use the operators, or None if it can."""
    try:
        loaded = _load()
    except OSError as error:
        return f"the library does not load: {error}"
    version = int(loaded.koe5_kernels_version())
    if version != OPSET_VERSION:
        return (
            f"the library has operator set {version}, expected {OPSET_VERSION}. Reinstall koe5-onnx-kernels"
        )
    return _text(loaded.koe5_kernels_unavailable()) or None


def level() -> str:
    """Return the instruction set in use, such as "amx" or "neon_i8mm" (see the README), or "none".

    Raises:
        OSError: The library is missing or does not load.
    """
    return _text(_load().koe5_kernels_level())


def packed_layout() -> int:
    """Return the version of the layout of packed weights. Files with another version are replaced.

    A session stores packed weights in the folder that its config entry `koe5.packed_weights` names. Sessions
    of other processes with the same entry map these files. Use a separate folder for each graph.

    Raises:
        OSError: The library is missing or does not load.
    """
    return int(_load().koe5_kernels_packed_layout())


def sharing_problem() -> str | None:
    """Return the first reason, since the last call, why weights are not shared despite `koe5.packed_weights`.

    Only sessions that the calling thread created are considered. Returns None if no reason was recorded.

    Raises:
        OSError: The library is missing or does not load.
    """
    return _text(_load().koe5_kernels_sharing_problem()) or None


@functools.cache
def _load() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library()))
    loaded.koe5_kernels_unavailable.restype = ctypes.c_char_p
    loaded.koe5_kernels_level.restype = ctypes.c_char_p
    loaded.koe5_kernels_version.restype = ctypes.c_int
    loaded.koe5_kernels_packed_layout.restype = ctypes.c_int
    loaded.koe5_kernels_sharing_problem.restype = ctypes.c_char_p
    return loaded


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
