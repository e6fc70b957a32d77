"""Where the fused operators' shared library is, and whether this machine can use it.

The library holds custom operators of ONNX Runtime (domain "koe5"): give `library()` to
`SessionOptions.register_custom_ops_library` where `unavailable()` is None. Nothing here imports ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

__all__ = ["OPSET_VERSION", "level", "library", "packed_layout", "sharing_problem", "unavailable"]

OPSET_VERSION = 3
"""Version of the operator set "koe5" that this package's graphs are written for."""

_FILE = "libkoe5_kernels.so"


def library() -> Path:
    """The shared library for `SessionOptions.register_custom_ops_library`.

    Raises:
        FileNotFoundError: The installation lacks it.
    """
    path = Path(__file__).with_name(_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: reinstall koe5-onnx-kernels")
    return path


def unavailable() -> str | None:
    """Why the operators cannot be used on this machine, in one line; None where they can."""
    try:
        loaded = _load()
    except OSError as error:
        return f"the library does not load: {error}"
    version = int(loaded.koe5_kernels_version())
    if version != OPSET_VERSION:
        return f"the library has operator set {version} and this package {OPSET_VERSION}: reinstall it"
    return _text(loaded.koe5_kernels_unavailable()) or None


def level() -> str:
    """The instruction set in use: "amx", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx2" or "none".

    Raises:
        OSError: The library is missing or does not load.
    """
    return _text(_load().koe5_kernels_level())


def packed_layout() -> int:
    """Version of the order in which weights are packed; files of another version are written again.

    A session keeps packed weights in the folder that its config entry `koe5.packed_weights` names, where
    other processes with the same entry map them. The folder must be for this graph alone.

    Raises:
        OSError: The library is missing or does not load.
    """
    return int(_load().koe5_kernels_packed_layout())


def sharing_problem() -> str | None:
    """Why a session that this thread made holds packed weights of its own in spite of `koe5.packed_weights`.

    The first reason since the last call; None where there is none.

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
