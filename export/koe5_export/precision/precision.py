"""Interface of a precision, with which graph.py writes embedding tables and linear layers."""

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
    """Number format of weights, of products, and of the hidden states, float[n, width, hidden].

    n is the number of texts, and width their padded length. float is float32 or float16. Methods with an
    argument `g` add nodes to the graph. They take the names of tensors, and return the names of their
    results.
    """

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
    """True if attention takes the lengths of texts (for CUDA), False if it takes a mask (for CPUs)."""
    adds_in_norm: bool = False
    """True if the node of a norm also computes the residual sum. This saves time on a GPU. On a CPU, it takes
    three times as long as separate nodes, because ONNX Runtime's kernel uses scalar instructions."""
    residual_scale: float = 1.0
    """Scale that `prepare` applies to outputs of norms and to terms of residual sums."""

    def prepare(self, layer: SmoothLayer) -> SmoothLayer:
        """Return the layer with the weights to write. `output_norm` must not change."""
        return layer

    def recipe(self) -> Mapping[str, Any]:
        """Return the settings of the precision for the recipe in the manifest."""
        return {}

    def round_weight(self, weight: Array, inputs: LinearInputs, compensation: Compensation) -> Rounded:
        """Round a weight, float32[in, out], for its inputs on calibration texts, if `strengths` is set."""
        raise NotImplementedError

    @abstractmethod
    def table(
        self, g: GraphWriter, name: str, shape: tuple[int, int], rows: Iterable[Array], ids: str
    ) -> str:
        """Add an embedding table and a lookup of `ids`, int64[n, width], in it: float[n, width, hidden].

        `shape` is that of the table, and `rows` yields groups of its rows, float32[rows, hidden].
        """

    def is_exception(self, rounded: Rounded) -> bool:
        """Return True if a weight is quantized in smaller blocks than this precision normally uses."""
        del rounded
        return False

    def positions(self, g: GraphWriter, table: Array, ids: str) -> str:
        """Add the position table, float32[rows, hidden], and a lookup of the position ids `ids` in it."""
        return g.node("Gather", [g.constant("positions.weight", table), ids], "positions")

    @abstractmethod
    def project(self, g: GraphWriter, x: str, linears: Sequence[tuple[str, Linear]]) -> list[str]:
        """Add x @ weight for each (name, linear layer); x, float[n, width, in], is already rotated."""

    def vector(self, g: GraphWriter, name: str, value: Array) -> str:
        """Add a bias, gain or shift in the dtype of the hidden states."""
        return g.constant(name, value)

    def widen(self, g: GraphWriter, x: str) -> str:
        """Add a node that converts hidden states to float32, if they are not."""
        del g
        return x
