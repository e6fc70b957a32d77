"""The installed ONNX Runtime, and whether one of its providers runs an artifact.

The only file that imports onnxruntime; others are given the module.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from koe5_onnx.artifact import Artifact, Target
from koe5_onnx.engine.machine import cpu_features
from koe5_onnx.errors import MissingDependencyError, ProviderError, UnsuitedCpuWarning

Provider = Literal["CPUExecutionProvider", "CUDAExecutionProvider"]
CPU: Provider = "CPUExecutionProvider"
CUDA: Provider = "CUDAExecutionProvider"

_PRECISIONS_FOR = {
    "cpu": "--precision fp32, int8, int8-block or int4-block",
    "cuda": "--precision fp32 or fp16",
}


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


def require_provider(ort: Any, artifact: Artifact, provider: Provider) -> None:
    """Make sure that the installed wheel has the provider and that the artifact is made for it.

    Raises:
        ProviderError: One is not so.
    """
    if provider not in ort.get_available_providers():
        raise ProviderError(
            f"the installed ONNX Runtime {ort.__version__} has no {provider}, only "
            f"{', '.join(ort.get_available_providers())}. For CUDA: pip uninstall onnxruntime, then "
            "pip install 'koe5-onnx[gpu]'"
        )
    manifest = artifact.manifest
    device = "cpu" if provider == CPU else "cuda"
    if device not in manifest.target.devices:
        raise ProviderError(
            f"{artifact.path} is {manifest.precision}, made for "
            f"{' and '.join(manifest.target.devices)}: it does not run on {device}; "
            f"export with {_PRECISIONS_FOR[device]}"
        )


def warn_if_unsuited(artifact: Artifact) -> None:
    """Warn where this CPU does not suit the artifact."""
    if reason := unsuited(artifact.manifest.target, cpu_features()):
        warnings.warn(
            f"{artifact.path} is {artifact.manifest.precision}, {reason}", UnsuitedCpuWarning, stacklevel=2
        )


def unsuited(target: Target, features: Sequence[str]) -> str | None:
    """Why a CPU with these `features` does not suit an artifact; None where it does or names none."""
    if not target.instructions or not features or set(features) & set(target.instructions):
        return None
    return (
        f"made for CPUs with one of {', '.join(target.instructions)}; "
        f"this one has none of them: {target.without}"
    )
