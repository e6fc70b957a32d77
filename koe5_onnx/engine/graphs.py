"""Choose which of an artifact's graphs runs here, and say why: the padded one or the packed one.

Every artifact has a padded graph. It may have a packed graph over the same weights, which takes tokens end to
end instead of padded rows: in int8 one for CPUs, made of the operators of the optional distribution
koe5-onnx-kernels, in fp16 one for CUDA. Where the packed graph cannot run, the padded graph returns the same
embeddings (each has a certificate of its own), only later.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from koe5_onnx.artifact import PACKED_CPU_GRAPH, PACKED_CUDA_GRAPH, Artifact
from koe5_onnx.errors import ProviderError
from koe5_onnx.options import EngineOptions

Layout = Literal["padded", "packed", "packed_cuda"]
"""How a graph takes a batch: rows padded to one width, or tokens end to end with offsets, or the same with
the other inputs of CUDA's packed attention; batching.py makes each."""


@dataclass(frozen=True)
class Graph:
    """One graph, ready to be loaded."""

    file: Path
    library: Path | None
    """Library of custom operators; None if the graph requires none."""
    reason: str
    """Why this one, on one line."""
    layout: Layout = "padded"

    @property
    def is_packed(self) -> bool:
        """Whether it takes tokens end to end instead of padded rows."""
        return self.layout != "padded"


def choose(artifact: Artifact, options: EngineOptions) -> Graph:
    """Choose the graph to run.

    Raises:
        ProviderError: The packed graph is required, and it cannot run here; the message says why.
    """
    if options.graph == "padded":
        return Graph(artifact.graph, None, "the padded graph, as requested")
    packed = _packed_on_cpu(artifact) if options.gpu is None else _packed_on_cuda(artifact)
    if isinstance(packed, Graph):
        return packed
    if options.graph == "packed" or options.cuda_graphs:
        raise ProviderError(f"the packed graph cannot run: {packed}")
    return Graph(artifact.graph, None, f"the padded graph: {packed}")


def packed_cuda_graph(artifact: Artifact, reason: str) -> Graph:
    """Return the packed graph for CUDA, which the artifact must have."""
    return Graph(artifact.path / PACKED_CUDA_GRAPH, None, f"the packed graph, {reason}", "packed_cuda")


def _packed_on_cpu(artifact: Artifact) -> Graph | str:
    """Return the packed graph of fused CPU kernels, or why it cannot run."""
    if PACKED_CPU_GRAPH not in artifact.manifest.files:
        return "the artifact has no packed graph for CPUs"
    library = installed_kernels()
    if isinstance(library, str):
        return library
    wanted, found = artifact.manifest.fused_operators, kernels_version()
    if wanted != found:
        return (
            f"the artifact's packed graph is for version {wanted} of the fused operators, but version "
            f"{found} is installed: export it again, or install the koe5-onnx-kernels of its export"
        )
    return Graph(
        artifact.path / PACKED_CPU_GRAPH, library, f"the packed graph, on {kernels_level()}", "packed"
    )


def _packed_on_cuda(artifact: Artifact) -> Graph | str:
    """Return the packed graph for CUDA, or why there is none."""
    if PACKED_CUDA_GRAPH not in artifact.manifest.files:
        return "the artifact has no packed graph for CUDA (fp16 exports have one)"
    return packed_cuda_graph(artifact, "without padding")


def installed_kernels() -> Path | str:
    """The library of fused kernels, or on one line why it cannot be used on this machine."""
    try:
        import koe5_onnx_kernels
    except ImportError:
        return "fused kernels are not installed (pip install 'koe5-onnx[kernels]')"
    reason = koe5_onnx_kernels.unavailable()
    return koe5_onnx_kernels.library() if reason is None else str(reason)


def kernels_version() -> int:
    """Version of the operators that installed kernels have."""
    import koe5_onnx_kernels

    return int(koe5_onnx_kernels.OPSET_VERSION)


def kernels_level() -> str:
    """The instruction set that installed kernels use, "amx" to "avx2", or "none": see kernels/README.md."""
    import koe5_onnx_kernels

    return str(koe5_onnx_kernels.level())


def packed_layout() -> int:
    """Version of the order in which installed kernels keep weights."""
    import koe5_onnx_kernels

    return int(koe5_onnx_kernels.packed_layout())


def sharing_problem() -> str | None:
    """Why the session that this thread opened last does not share its packed weights; said once."""
    import koe5_onnx_kernels

    problem: str | None = koe5_onnx_kernels.sharing_problem()
    return problem
