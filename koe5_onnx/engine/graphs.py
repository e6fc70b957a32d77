"""Select the padded or the packed graph of an artifact.

Every artifact has a padded graph. It may also have a packed graph, which shares the weights and takes the
concatenated tokens of a batch instead of padded rows. The packed graph of an int8 artifact runs on CPUs and
requires the optional package koe5-onnx-kernels; that of an fp16 artifact runs on CUDA. The padded graph
returns equivalent embeddings, but is slower. Each graph has its own certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from koe5_onnx.artifact import PACKED_CPU_GRAPH, PACKED_CUDA_GRAPH, Artifact
from koe5_onnx.engine.batching import PackedCudaInputs
from koe5_onnx.errors import ProviderError
from koe5_onnx.options import EngineOptions

Kind = Literal["packed", "padded"]
"""A value of the option `graph` that names one graph."""

Layout = Literal["padded", "packed_cpu", "packed_cuda"]
"""Input format of a graph: padded rows, concatenated tokens with offsets, or concatenated tokens with the
inputs of packed attention on CUDA. `pad`, `pack_cpu` and `pack_cuda` of batching.py create these inputs."""

INPUTS: Mapping[Layout, Sequence[str]] = {
    "padded": ("input_ids", "attention_mask"),
    "packed_cpu": ("input_ids", "position_ids", "offsets"),
    "packed_cuda": PackedCudaInputs._fields,
}
"""Input names by layout, in the order in which batching.py returns the arrays."""

OUTPUT = "sentence_embedding"
"""Output of every graph, float32[n, dim]. sentence-transformers and Optimum use the same name."""
HIDDEN = "last_hidden_state"
"""Output of padded graphs for other runtimes, which pool it themselves: float32[n, width, dim]."""

FUSED_OPERATORS = 4
"""Version of the fused operators that this koe5-onnx requires: OPSET_VERSION of koe5-onnx-kernels."""


@dataclass(frozen=True)
class Graph:
    """A selected graph of an artifact."""

    file: Path
    library: Path | None
    """Library of custom operators; None if the graph requires none."""
    reason: str
    """Description of the graph for users, such as "the packed graph, on amx"."""
    layout: Layout = "padded"

    @property
    def is_packed(self) -> bool:
        """True if the graph takes concatenated tokens instead of padded rows."""
        return self.layout != "padded"

    @property
    def kind(self) -> Kind:
        """Value of the option `graph` that selects this graph."""
        return "packed" if self.is_packed else "padded"


def choose(artifact: Artifact, options: EngineOptions) -> Graph:
    """Select the graph to run.

    Raises:
        ProviderError: `options` require the packed graph, and it cannot run. The message contains the reason.
    """
    if options.graph == "padded":
        return Graph(artifact.graph, None, "the padded graph, as requested")
    packed = _packed_on_cpu(artifact) if options.gpu is None else _packed_on_cuda(artifact)
    if isinstance(packed, Graph):
        return packed
    if options.graph == "packed" or options.cuda_graphs:
        raise ProviderError(f"the packed graph cannot run: {packed}")
    return Graph(artifact.graph, None, f"the padded graph, because {packed}")


def packed_cuda_graph(artifact: Artifact, reason: str) -> Graph:
    """Return the packed graph for CUDA, which the artifact must have. `reason` completes its description."""
    return Graph(artifact.path / PACKED_CUDA_GRAPH, None, f"the packed graph, {reason}", "packed_cuda")


def _packed_on_cpu(artifact: Artifact) -> Graph | str:
    """Return the packed graph for CPUs, or why it cannot run."""
    if PACKED_CPU_GRAPH not in artifact.manifest.files:
        return "the artifact has no packed graph for CPUs"
    library = installed_kernels()
    if isinstance(library, str):
        return library
    if (version := artifact.manifest.fused_operators) != FUSED_OPERATORS:
        return (
            f"the artifact requires version {version} of the fused operators, but this koe5-onnx uses "
            f"version {FUSED_OPERATORS} (export the artifact again)"
        )
    return Graph(
        artifact.path / PACKED_CPU_GRAPH, library, f"the packed graph, on {kernels_level()}", "packed_cpu"
    )


def _packed_on_cuda(artifact: Artifact) -> Graph | str:
    if PACKED_CUDA_GRAPH not in artifact.manifest.files:
        return "the artifact has no packed graph for CUDA (most fp16 artifacts have one)"
    return packed_cuda_graph(artifact, "without padding")


def installed_kernels() -> Path | str:
    """Return the path of the fused kernels' library, or a one-line reason why it cannot be used."""
    try:
        import koe5_onnx_kernels
    except ImportError:
        return "fused kernels are not installed (run pip install ./kernels in a clone of koe5-onnx)"
    if (version := koe5_onnx_kernels.OPSET_VERSION) != FUSED_OPERATORS:
        return (
            f"koe5-onnx-kernels has version {version} of the fused operators, but this koe5-onnx requires "
            f"version {FUSED_OPERATORS} (install matching versions of the two packages)"
        )
    reason = koe5_onnx_kernels.unavailable()
    return koe5_onnx_kernels.library() if reason is None else str(reason)


def kernels_level() -> str:
    """Return the instruction set that the installed kernels use, such as "amx"; "none" if they cannot run."""
    import koe5_onnx_kernels

    return str(koe5_onnx_kernels.level())


def kernels_version() -> str:
    """Return the version of the installed kernels; "unknown" if they were not installed as a package."""
    try:
        return version("koe5-onnx-kernels")
    except PackageNotFoundError:
        return "unknown"


def weight_layout() -> int:
    """Return the version of the layout in which the installed kernels store packed weights."""
    import koe5_onnx_kernels

    return int(koe5_onnx_kernels.packed_layout())


def sharing_problem() -> str | None:
    """Return and clear the reason why sessions that this thread opened do not share weights, if any."""
    import koe5_onnx_kernels

    problem: str | None = koe5_onnx_kernels.sharing_problem()
    return problem
