"""Import ONNX Runtime and check that an execution provider can run an artifact.

Only this module contains an import of onnxruntime. Others call `import_onnxruntime`, or get the module as
`ort`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from koe5_onnx.artifact import PRECISIONS, Artifact, Target
from koe5_onnx.engine.machine import cpu_features
from koe5_onnx.errors import MissingDependencyError, ProviderError, UnsuitedCpuWarning

Provider = Literal["CPUExecutionProvider", "CUDAExecutionProvider"]
CPU: Provider = "CPUExecutionProvider"
CUDA: Provider = "CUDAExecutionProvider"


def import_onnxruntime() -> Any:
    """Import onnxruntime from the installed wheel, with telemetry disabled (except on Windows).

    The wheels send usage data to Microsoft unless ORT_DISABLE_TELEMETRY is set before the import, and the
    telemetry thread makes a forked child hang when it exits. On Windows, the variable has no effect. A value
    set by the user is kept.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md

    Raises:
        MissingDependencyError: onnxruntime is not installed, or incomplete because onnxruntime-gpu, which has
            the same files, was uninstalled.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    purpose = "running an artifact on the CPU (on CUDA, install the extra gpu instead)"
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", "cpu", purpose) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise MissingDependencyError("onnxruntime", "cpu", purpose)
    return onnxruntime


def require_provider(ort: Any, artifact: Artifact, provider: Provider) -> None:
    """Check that the installed ONNX Runtime has the provider and that the artifact supports it.

    Raises:
        ProviderError: The provider is missing, or the artifact does not support it.
    """
    if provider not in ort.get_available_providers():
        raise ProviderError(
            f"the installed ONNX Runtime {ort.__version__} has no {provider}, only "
            f"{', '.join(ort.get_available_providers())}. To use CUDA, run pip uninstall onnxruntime, then "
            "pip install '.[gpu]' in a clone of koe5-onnx"
        )
    manifest = artifact.manifest
    device = "cpu" if provider == CPU else "cuda"
    if device not in manifest.target.devices:
        suitable = [name for name, devices in PRECISIONS.items() if device in devices]
        raise ProviderError(
            f"{artifact.path} has precision {manifest.precision}, which runs on "
            f"{' and '.join(manifest.target.devices)} but not on {device}. "
            f"Export it with a --precision for {device}: {', '.join(suitable)}"
        )


def warn_if_unsuited(artifact: Artifact) -> None:
    """Warn if this CPU has none of the instruction sets that the artifact is intended for."""
    if reason := unsuited(artifact.manifest.target, cpu_features()):
        warnings.warn(
            f"{artifact.path} ({artifact.manifest.precision}) is {reason}", UnsuitedCpuWarning, stacklevel=2
        )


def unsuited(target: Target, features: Sequence[str]) -> str | None:
    """Return why a CPU with `features` is unsuitable; None if it is suitable or its features are unknown."""
    if not target.instructions or not features or set(features) & set(target.instructions):
        return None
    return (
        f"intended for CPUs with one of {', '.join(target.instructions)}, and this CPU has none of them: "
        f"{target.without}"
    )
