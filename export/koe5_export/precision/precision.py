"""What a precision has to say; graph.py asks, and knows no number format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from koe5_export.gate import Gate
from koe5_export.weights import Array, Linear
from koe5_export.writer import GraphWriter
from koe5_onnx import Target


class Precision(ABC):
    """Number format of weights and products."""

    name: ClassVar[str]
    gate: ClassVar[Gate]
    target: ClassVar[Target]
    weight_bytes: ClassVar[float]
    """Bytes that a weight takes on disk, about."""
    smoothing: ClassVar[float | None] = None
    """Strength of channel smoothing (smooth.py); None where weights stay as they are and need no texts."""

    def recipe(self) -> Mapping[str, Any]:
        """How the precision is reached, for the manifest."""
        return {}

    @abstractmethod
    def table(
        self, g: GraphWriter, name: str, shape: tuple[int, int], rows: Iterable[Array], ids: str
    ) -> str:
        """Rows of an embedding table for ids int64[n, width]: float32[n, width, hidden]."""

    @abstractmethod
    def project(self, g: GraphWriter, x: str, linears: Sequence[tuple[str, Linear]]) -> list[str]:
        """x @ weight for each (name, linear); x is float32[n, width, in]."""

    def project_gelu(self, g: GraphWriter, x: str, name: str, linear: Linear, typical_max: float) -> str:
        """x @ weight where x comes out of a GELU; `typical_max` is the median of its rows' largest."""
        del typical_max
        return self.project(g, x, [(name, linear)])[0]
