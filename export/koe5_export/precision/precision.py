"""What a precision has to say; graph.py asks, and knows no number format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from koe5_export.gate import Gate
from koe5_export.rounding import Compensation
from koe5_export.smooth import Inputs, SmoothLayer, Strengths
from koe5_export.weights import Array, Linear, Rounded
from koe5_export.writer import GraphWriter
from koe5_onnx import Target


class Precision(ABC):
    """Number format of weights and products. Hidden states are float[n, width, hidden] of its own type."""

    name: str
    gate: Gate
    target: Target
    weight_bytes: float
    """Bytes that a weight of a linear takes on disk."""
    table_bytes: float
    """Bytes that a weight of the word embeddings takes."""
    strengths: Strengths | None = None
    """Strengths of channel smoothing (smooth.py); None where weights stay as they are and need no texts."""
    masks_by_length: bool = False
    """Whether attention gets the lengths of the texts, for CUDA, instead of a mask or none, for the CPU."""
    adds_in_norm: bool = False
    """Whether residual sums are part of the norm's node: one pass on a GPU, three times slow on a CPU, where
    that node is scalar code."""
    residual_scale: float = 1.0
    """What `prepare` multiplies hidden states between norms and linears with."""

    def prepare(self, layer: SmoothLayer) -> SmoothLayer:
        """The layer as its weights are written; the layer's output norm is not touched."""
        return layer

    def recipe(self) -> Mapping[str, Any]:
        """How the precision is reached, for the manifest."""
        return {}

    def round_weight(self, weight: Array, inputs: Inputs, compensation: Compensation) -> Rounded:
        """The weight of a linear in integers, for such inputs; asked only where `strengths` is given."""
        raise NotImplementedError

    @abstractmethod
    def table(
        self, g: GraphWriter, name: str, shape: tuple[int, ...], rows: Iterable[Array], ids: str
    ) -> str:
        """Rows of an embedding table for ids int64[n, width]: float[n, width, hidden]."""

    def is_exception(self, rounded: Rounded) -> bool:
        """Whether a weight was rounded in another way than this precision's usual one."""
        del rounded
        return False

    def positions(self, g: GraphWriter, table: Array, ids: str) -> str:
        """Rows of the position embeddings, float32[positions, hidden]: float[n, width, hidden]."""
        return g.node("Gather", [g.constant("positions.weight", table), ids], "positions")

    @abstractmethod
    def project(self, g: GraphWriter, x: str, linears: Sequence[tuple[str, Linear]]) -> list[str]:
        """x @ weight for each (name, linear); x is float[n, width, in], rotated if the linears want it so."""

    def vector(self, g: GraphWriter, name: str, value: Array) -> str:
        """A bias, gain or shift in the type of the hidden states."""
        return g.constant(name, value)

    def widen(self, g: GraphWriter, x: str) -> str:
        """Hidden states as float32."""
        del g
        return x
