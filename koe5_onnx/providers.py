"""The installed ONNX Runtime, and which of its execution providers a device means.

The only file that imports onnxruntime; others are given the module.
"""

from __future__ import annotations

import os
import re
from typing import Any, Literal

from koe5_onnx.errors import InputError, MissingDependencyError

Provider = Literal["CPUExecutionProvider", "CUDAExecutionProvider"]
CPU: Provider = "CPUExecutionProvider"
CUDA: Provider = "CUDAExecutionProvider"


def import_onnxruntime() -> Any:
    """The module onnxruntime, of whichever wheel is installed.

    Its wheels report usage to their maker unless ORT_DISABLE_TELEMETRY is set before the import, and the
    reporting thread makes a forked child hang when it exits. So it is set here, unless the caller did.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md

    Raises:
        MissingDependencyError: There is none, or one wheel was uninstalled over the other.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    purpose = "running an artifact (on the CPU; for CUDA it is 'koe5-onnx[gpu]', never both)"
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", "cpu", purpose) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise MissingDependencyError("onnxruntime", "cpu", purpose)
    return onnxruntime


def parse_device(device: str) -> tuple[Provider, int]:
    """Turn "cpu", "cuda" or "cuda:N" into a provider and the number of the GPU; that of the CPU is 0.

    Raises:
        InputError: Any other form.
    """
    if device == "cpu":
        return CPU, 0
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise InputError(f"device is {device!r}: expected 'cpu', 'cuda' or 'cuda:N'")
    return CUDA, int(match[1] or 0)
