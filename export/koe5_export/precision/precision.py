"""Interface of a precision, through which graph.py writes tables and linear layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from koe5_export.gate import Gate
from koe5_export.rounding import Compensation
from koe5_export.smooth import LinearInputs, SmoothLayer, Strengths
from koe5_export.weights import Array, Linear, Rounded
from koe5_export.writer import GraphWriter
from koe5_onnx import Target


class Precision(ABC):
    """Number format of weights and products, and of hidden states [n, width, hidden]."""

    name: str
    gate: Gate
    target: Target
    weight_bytes: float
    """Bytes on disk per weight of a linear layer."""
    table_bytes: float
    """Bytes on disk per weight of the word embeddings."""
    strengths: Strengths | None = None
    """Strengths of channel smoothing (smooth.py); None for no smoothing and no calibration."""
    masks_by_length: bool = False
    """True if attention takes lengths of texts (for CUDA) instead of an optional mask (for CPUs)."""
    adds_in_norm: bool = False
    """True if the norm's node adds the residual sum: one pass on a GPU, but three times slower on a CPU,
    where this node is scalar code."""
    residual_scale: float = 1.0
    """Scale that `prepare` applies to activations between norms and linear layers."""

    def prepare(self, layer: SmoothLayer) -> SmoothLayer:
        """Return the layer with the weights to write; its output norm does not change."""
        return layer

    def recipe(self) -> Mapping[str, Any]:
        """Return the settings of the precision, for the manifest."""
        return {}

    def round_weight(self, weight: Array, inputs: LinearInputs, compensation: Compensation) -> Rounded:
        """Round the weight of a linear layer for given inputs; called only if `strengths` is not None."""
        raise NotImplementedError

    @abstractmethod
    def table(
        self, g: GraphWriter, name: str, shape: tuple[int, int], rows: Iterable[Array], ids: str
    ) -> str:
        """Add an embedding table and the lookup of ids int64[n, width]: float[n, width, hidden]."""

    def is_exception(self, rounded: Rounded) -> bool:
        """Return True if a weight is in smaller blocks than is usual for the precision."""
        del rounded
        return False

    def positions(self, g: GraphWriter, table: Array, ids: str) -> str:
        """Add the position table float32[positions, hidden] and its lookup: float[n, width, hidden]."""
        return g.node("Gather", [g.constant("positions.weight", table), ids], "positions")

    @abstractmethod
    def project(self, g: GraphWriter, x: str, linears: Sequence[tuple[str, Linear]]) -> list[str]:
        """Add x @ weight for each (name, linear); x is float[n, width, in], already rotated if required."""

    def vector(self, g: GraphWriter, name: str, value: Array) -> str:
        """Add a bias, gain or shift in the dtype of the hidden states."""
        return g.constant(name, value)

    def widen(self, g: GraphWriter, x: str) -> str:
        """Convert hidden states to float32."""
        del g
        return x
