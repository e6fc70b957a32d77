"""Optimum's ONNX exporter, which traces PyTorch. The only user of optimum.

It is a second opinion on the graph builder, and the way for encoders that the builder does not know. The
traced graph becomes an artifact as traced.py does it: same interface, same gate. It runs as it was traced,
without fused operators, so it is slower than a built graph.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from koe5_export.progress import Progress, silent
from koe5_export.publish import Plan
from koe5_export.reference import quiet, reference_versions
from koe5_export.traced import write_traced
from koe5_onnx import CheckpointError, MissingDependencyError


def require_optimum() -> None:
    """Check that Optimum's ONNX exporter is installed.

    Raises:
        MissingDependencyError: It is not; the message names the extra.
    """
    try:
        import optimum.exporters.onnx  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            error.name or "optimum", "export,reference,optimum", "the exporter optimum"
        ) from error


def write_with_optimum(
    plan: Plan, graph: Path, weights: Path, report: Progress = silent
) -> Mapping[str, Any]:
    """Trace the checkpoint in fp32 and write graph and weights of an artifact.

    Optimum's own files go into a temporary folder beside the artifact's and are removed.

    Returns:
        The recipe for the manifest.

    Raises:
        CheckpointError: Optimum cannot export this encoder.
        InputError: The traced graph has an interface that cannot be dealt with.
    """
    out = graph.parent
    report("trace", 0, 1)
    with tempfile.TemporaryDirectory(prefix=f"{out.stem}.optimum-", dir=out.parent) as folder:
        _trace(plan.checkpoint.encoder_folder, Path(folder))
        about = write_traced(Path(folder) / "model.onnx", plan.contract, graph, weights)
    report("trace", 1, 1)
    packages = {name: version(name) for name in ("optimum", "optimum-onnx")}
    return {"exporter": "optimum", **packages, **reference_versions(), **about}


def _trace(checkpoint: Path, folder: Path) -> None:
    """Let Optimum write model.onnx and, above 2 GB, model.onnx_data."""
    from optimum.exporters.onnx import main_export
    from optimum.utils import logging

    logging.set_verbosity_error()
    try:
        # The tracer warns of every shape that it looks at; the certificate says whether it went well.
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
