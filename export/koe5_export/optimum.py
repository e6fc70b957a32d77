"""Export with Optimum's ONNX exporter, which traces PyTorch. Only this module imports optimum.

Optimum supports more encoders than the graph builder (graph.py), and is an independent check of the builder.
traced.py converts the graph that Optimum writes. The converted graph must satisfy the same bounds as one of
the builder. It has no fused operators and is therefore slower.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from koe5_export.artifact_writer import ArtifactSpec
from koe5_export.progress import Progress, silent
from koe5_export.reference import quiet, reference_versions
from koe5_export.traced import write_traced
from koe5_onnx import CheckpointError, MissingDependencyError
from koe5_onnx.artifact import GRAPHS


def require_optimum() -> None:
    """Check that Optimum's ONNX exporter is installed.

    Raises:
        MissingDependencyError: The exporter is not installed. The message names the extra.
    """
    try:
        import optimum.exporters.onnx  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            error.name or "optimum", "export,reference,optimum", "exporting with Optimum"
        ) from error


def write_with_optimum(spec: ArtifactSpec, out: Path, report: Progress = silent) -> Mapping[str, Any]:
    """Trace a checkpoint in fp32, and write the padded graph and its weights to the artifact folder `out`.

    Returns:
        The recipe for the manifest.

    Raises:
        CheckpointError: Optimum cannot export this encoder.
        InputError: The interface of the traced graph is not supported.
    """
    report("trace", 0, 1)
    with tempfile.TemporaryDirectory(prefix=f"{out.stem}.optimum-", dir=out.parent) as folder:
        _trace(spec.checkpoint.encoder_folder, Path(folder))
        about = write_traced(Path(folder) / "model.onnx", spec.contract, out / GRAPHS["fp32"])
    report("trace", 1, 1)
    packages = {name: version(name) for name in ("optimum", "optimum-onnx")}
    return {"exporter": "optimum", **packages, **reference_versions(), **about}


def _trace(checkpoint: Path, folder: Path) -> None:
    """Run Optimum, which writes model.onnx and, for large models, model.onnx_data to `folder`."""
    from optimum.exporters.onnx import main_export
    from optimum.utils import logging

    logging.set_verbosity_error()
    try:
        # The tracer warns whenever it makes a shape constant. The certificate shows errors that this causes.
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main_export(
                str(checkpoint),
                output=folder,
                task="feature-extraction",
                library_name="transformers",
                dtype="fp32",
                local_files_only=True,
                no_post_process=True,
                do_validation=False,
            )
    except (ValueError, LookupError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(
            f"Optimum {version('optimum-onnx')} cannot export {checkpoint}: {error}"
        ) from error
