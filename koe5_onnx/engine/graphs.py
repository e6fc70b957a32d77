"""Which of an artifact's graphs runs here, and why: the stock one, or the second, which pads nothing.

An artifact may hold a second graph over the same weights: in int8 one made of the operators of the optional
distribution koe5-onnx-kernels, for CPUs, in fp16 one for CUDA. Both take tokens end to end instead of padded
rows. Whatever is missing for it, the stock graph gives the same embeddings (each has a certificate of its
own), only later.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from koe5_onnx.artifact import FUSED_GRAPH, PACKED_GRAPH, Artifact
from koe5_onnx.errors import InputError, ProviderError

Kernels = Literal["auto", "fused", "stock"]
"""Which graph is wanted: the second one where it runs, that or an error, or always the stock one."""
Layout = Literal["padded", "packed", "packed_cuda"]
"""How a graph takes a batch: rows padded to one width, or tokens end to end with offsets, or the same with
what CUDA's packed attention needs besides; batching.py makes each."""


@dataclass(frozen=True)
class Graph:
    """One graph, ready to be loaded."""

    file: Path
    library: Path | None
    """Library of operators that it needs; None where it needs none."""
    reason: str
    """Why this one, on one line."""
    layout: Layout = "padded"

    @property
    def is_packed(self) -> bool:
        """Whether it takes tokens end to end instead of padded rows."""
        return self.layout != "padded"


def choose(artifact: Artifact, device: str, kernels: Kernels = "auto") -> Graph:
    """Choose the graph to run.

    Args:
        artifact: The opened artifact.
        device: "cpu", "cuda" or "cuda:N".
        kernels: What is wanted.

    Raises:
        InputError: `kernels` is no such word.
        ProviderError: The second graph is asked for and cannot run here; the message says why.
    """
    if kernels not in ("auto", "fused", "stock"):
        raise InputError(f"kernels is {kernels!r}: expected 'auto', 'fused' or 'stock'")
    if kernels == "stock":
        return Graph(artifact.graph, None, "the stock graph, as asked for")
    second = _fused(artifact) if device == "cpu" else _packed(artifact)
    if isinstance(second, Graph):
        return second
    if kernels == "fused":
        raise ProviderError(f"the {'fused' if device == 'cpu' else 'packed'} graph cannot run: {second}")
    return Graph(artifact.graph, None, f"the stock graph: {second}")


def packed_cuda_graph(artifact: Artifact, reason: str) -> Graph:
    """The graph with packed attention, which the artifact must have."""
    return Graph(artifact.path / PACKED_GRAPH, None, f"the packed graph, {reason}", "packed_cuda")


def _fused(artifact: Artifact) -> Graph | str:
    """The graph for fused CPU kernels, or why it cannot run."""
    if FUSED_GRAPH not in artifact.manifest.files:
        return "the artifact has no graph for fused kernels"
    library = installed_kernels()
    if isinstance(library, str):
        return library
    wanted, found = artifact.manifest.fused_operators, kernels_version()
    if wanted != found:
        return (
            f"the artifact's fused graph is for version {wanted} of the fused operators, installed are those "
            f"of version {found}: export it again, or install the koe5-onnx-kernels of its export"
        )
    return Graph(artifact.path / FUSED_GRAPH, library, f"the fused graph, on {kernels_level()}", "packed")


def _packed(artifact: Artifact) -> Graph | str:
    """The graph with packed attention for CUDA, or why there is none."""
    if PACKED_GRAPH not in artifact.manifest.files:
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
