"""Block-quantized 8-bit or 4-bit weights, for all CPUs; slower than int8 on CPUs with VNNI.

Linear layers are MatMulNBits nodes with accuracy level 4. This operator quantizes its input in blocks, so an
outlier affects only its own block. It has kernels for AVX2 and ARM too. We have not measured if its sums can
saturate on CPUs without VNNI.
Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits,
https://github.com/microsoft/onnxruntime/pull/24491
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_export.gate import Gate
from koe5_export.precision.precision import Precision
from koe5_export.precision.table import int8_table
from koe5_export.rounding import DAMPING, Compensation, round_blocks
from koe5_export.smooth import LinearInputs, Strengths
from koe5_export.weights import Array, Linear, Rounded
from koe5_export.writer import MICROSOFT, GraphWriter
from koe5_onnx import CheckpointError
from koe5_onnx.artifact import PRECISIONS, Target

SHORTEST_BLOCK = 16
"""Smallest block of MatMulNBits; the largest is 256."""
_INT8_PRODUCTS = 4
"""Accuracy level at which MatMulNBits multiplies integers. By default, it converts weights to fp32."""


class Block(Precision):
    """Precision with weights of `bits` bits. In each column, each block of `block` rows has one scale.

    Args:
        name: Name of the precision, in `PRECISIONS` of koe5_onnx.artifact.
        bits: 8 or 4.
        block: Rows per block, a power of two from 16 to 256. If it does not divide the number of inputs of a
            linear layer, that layer gets shorter blocks.
        strength: Strength of channel smoothing, the same for the inputs of all linear layers.
        gate: Bounds of the certificates.
    """

    table_bytes = 1.0

    def __init__(self, name: str, bits: int, block: int, strength: float, gate: Gate) -> None:
        if bits not in {4, 8}:
            raise ValueError(f"bits is {bits}; expected 4 or 8")
        self.name = name
        self.gate = gate
        self.target = Target(devices=PRECISIONS[name], instructions=(), without="")
        self.strengths = Strengths(attention=strength, context=strength, ffn=strength, gelu=strength)
        self.weight_bytes = bits / 8 + 4 / block
        self._bits = bits
        self._block = block

    def recipe(self) -> dict[str, Any]:
        return {
            "weights": f"int{self._bits}, one scale per {self._block} rows, rounded with error compensation",
            "activations": "int8, one scale per block",
            "embeddings": "int8, one scale per block of a row",
            "rounding_damping": DAMPING,
        }

    def round_weight(self, weight: Array, inputs: LinearInputs, compensation: Compensation) -> Rounded:
        del inputs
        return round_blocks(weight, self._bits, self._block_of(weight), compensation)

    def table(
        self, g: GraphWriter, name: str, shape: tuple[int, int], rows: Iterable[Array], ids: str
    ) -> str:
        return int8_table(g, name, shape, rows, ids)

    def positions(self, g: GraphWriter, table: Array, ids: str) -> str:
        if self._bits == 8:
            return super().positions(g, table, ids)
        return int8_table(g, "positions", table.shape, [table], ids)

    def project(self, g: GraphWriter, x: str, linears: Sequence[tuple[str, Linear]]) -> list[str]:
        return [self._product(g, x, name, linear) for name, linear in linears]

    def _product(self, g: GraphWriter, x: str, name: str, linear: Linear) -> str:
        if linear.rounded is None:
            raise ValueError(f"{name} was not rounded")
        return block_product(g, x, name, linear.rounded, self._bits)

    def _block_of(self, weight: Array) -> int:
        block = block_of(self._block, weight)
        if block < SHORTEST_BLOCK:
            raise CheckpointError(
                f"a linear layer has {len(weight)} inputs, but {self.name} requires a multiple of "
                f"{SHORTEST_BLOCK}. Export with fp32 or int8"
            )
        return block


def block_of(longest: int, weight: Array) -> int:
    """Return the largest block up to `longest`, a power of two, that divides a weight's number of rows."""
    return int(np.gcd(longest, len(weight)))


def block_product(g: GraphWriter, x: str, name: str, rounded: Rounded, bits: int) -> str:
    """Add x @ weight, where x is float32[n, width, in] and the weight is quantized to `bits` bits."""
    rows, columns = rounded.integers.shape
    inputs = [
        x,
        g.constant(f"{name}.weight", _packed(rounded, bits)),
        g.constant(f"{name}.scale", np.ascontiguousarray(rounded.scale.T)),
    ]
    settings = {"K": rows, "N": columns, "bits": bits, "block_size": rows // len(rounded.scale)}
    return g.node("MatMulNBits", inputs, name, domain=MICROSOFT, accuracy_level=_INT8_PRODUCTS, **settings)


def _packed(rounded: Rounded, bits: int) -> npt.NDArray[np.uint8]:
    """Pack integers as uint8[out, blocks, block x bits / 8], after adding half of the range to each.

    A byte has one 8-bit value, or two 4-bit values with the first one in the low half.
    """
    columns = (rounded.integers.T.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 4:
        columns = columns[:, ::2] | columns[:, 1::2] << 4
    return np.asarray(columns.reshape(len(columns), len(rounded.scale), -1))
