"""Which of an artifact's graphs runs here, and why: the stock one, or the one for fused CPU kernels.

An artifact may hold a second graph over the same weights, made of the operators of the optional distribution
koe5-onnx-kernels. It takes tokens end to end instead of padded rows. Whatever is missing for it, the stock
graph gives the same embeddings (each has a certificate of its own), only later.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from koe5_onnx.artifact import FUSED_GRAPH, Artifact
from koe5_onnx.errors import InputError, ProviderError

Kernels = Literal["auto", "fused", "stock"]
"""Which graph is wanted: the fused one where it runs, that or an error, or always the stock one."""


@dataclass(frozen=True)
class Graph:
    """One graph, ready to be loaded."""

    file: Path
    library: Path | None
    """Library of operators that it needs; None for the stock graph."""
    reason: str
    """Why this one, on one line."""

    @property
    def is_packed(self) -> bool:
        """Whether it takes tokens end to end (`batching.pack`) instead of padded rows (`batching.pad`)."""
        return self.library is not None


def choose(artifact: Artifact, device: str, kernels: Kernels = "auto") -> Graph:
    """Choose the graph to run.

    Args:
        artifact: The opened artifact.
        device: "cpu", "cuda" or "cuda:N".
        kernels: What is wanted.

    Raises:
        InputError: `kernels` is no such word.
        ProviderError: The fused graph is asked for and cannot run here; the message says why.
    """
    if kernels not in ("auto", "fused", "stock"):
        raise InputError(f"kernels is {kernels!r}: expected 'auto', 'fused' or 'stock'")
    if kernels == "stock":
        return Graph(artifact.graph, None, "the stock graph, as asked for")
    library = _library(artifact, device)
    if isinstance(library, Path):
        return Graph(artifact.path / FUSED_GRAPH, library, f"the fused graph, on {kernels_level()}")
    if kernels == "fused":
        raise ProviderError(f"the fused graph cannot run: {library}")
    return Graph(artifact.graph, None, f"the stock graph: {library}")


def _library(artifact: Artifact, device: str) -> Path | str:
    """The kernels' library, or why the fused graph cannot run."""
    if device != "cpu":
        return "fused kernels are for the CPU"
    if FUSED_GRAPH not in artifact.manifest.files:
        return "the artifact has no graph for fused kernels"
    return installed_kernels()


def installed_kernels() -> Path | str:
    """The library of fused kernels, or on one line why it cannot be used on this machine."""
    try:
        import koe5_onnx_kernels
    except ImportError:
        return "fused kernels are not installed (pip install 'koe5-onnx[kernels]')"
    reason = koe5_onnx_kernels.unavailable()
    return koe5_onnx_kernels.library() if reason is None else str(reason)


def kernels_level() -> str:
    """The instruction set that installed kernels use: "amx", "avx512_bf16", "avx512_vnni" or "none"."""
    import koe5_onnx_kernels

    return str(koe5_onnx_kernels.level())
