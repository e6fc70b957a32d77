"""Weights in blocks of 8 or 4 bits: finer than a scale a column, on any CPU, slower where there is VNNI.

The operator quantizes its input itself, block by block, so that an outlier costs its own block only.
Source: MatMulNBits with accuracy level 4, whose kernels cover AVX2 and ARM too,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits,
https://github.com/microsoft/onnxruntime/pull/24491.
That its sums do not saturate without VNNI is not measured.
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
from koe5_export.smooth import Inputs, Strengths
from koe5_export.weights import Array, Linear, Rounded
from koe5_export.writer import MICROSOFT, GraphWriter
from koe5_onnx import CheckpointError, Target

SHORTEST_BLOCK = 16
"""ONNX Runtime takes blocks of 16 to 256."""
_INT8_PRODUCTS = 4
"""Accuracy level: products of integers, where the default converts the weights back to fp32."""


class Block(Precision):
    """Weights in `bits` bits with a scale for each `block` rows of a column.

    Args:
        name: Of the precision.
        bits: 8 or 4.
        block: A power of two from 16 to 256; shorter where it does not divide a linear's inputs.
        strength: Of channel smoothing: less than for int8, since blocks keep outliers to themselves.
        gate: Its bounds.
    """

    target = Target(devices=("cpu",), instructions=(), without="")
    table_bytes = 1.0

    def __init__(self, name: str, bits: int, block: int, strength: float, gate: Gate) -> None:
        self.name = name
        self.gate = gate
        self.strengths = Strengths(attention=strength, context=strength, ffn=strength)
        self.weight_bytes = bits / 8 + 4 / block
        self._bits = bits
        self._block = block

    def recipe(self) -> dict[str, Any]:
        return {
            "weights": f"{self._bits} bits, a scale each {self._block} rows, rounded with error compensation",
            "activations": "int8 a block",
            "embeddings": "int8 a row",
            "rounding_damping": DAMPING,
        }

    def round_weight(self, weight: Array, inputs: Inputs, compensation: Compensation) -> Rounded:
        del inputs
        return round_blocks(weight, self._bits, self._block_of(weight), compensation)

    def table(
        self, g: GraphWriter, name: str, shape: tuple[int, ...], rows: Iterable[Array], ids: str
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
                f"a linear has {len(weight)} inputs, {self.name} needs a multiple of {SHORTEST_BLOCK}: "
                "export with fp32 or int8"
            )
        return block


def block_of(longest: int, weight: Array) -> int:
    """The longest block up to `longest`, a power of two, that divides a column."""
    return int(np.gcd(longest, len(weight)))


def block_product(g: GraphWriter, x: str, name: str, rounded: Rounded, bits: int) -> str:
    """x @ weight for a weight in blocks of `bits` bits; x is float32[n, width, in]."""
    rows, columns = rounded.integers.shape
    inputs = [
        x,
        g.constant(f"{name}.weight", _packed(rounded, bits)),
        g.constant(f"{name}.scale", np.ascontiguousarray(rounded.scale.T)),
    ]
    settings = {"K": rows, "N": columns, "bits": bits, "block_size": rows // len(rounded.scale)}
    return g.node("MatMulNBits", inputs, name, domain=MICROSOFT, accuracy_level=_INT8_PRODUCTS, **settings)


def _packed(rounded: Rounded, bits: int) -> npt.NDArray[np.uint8]:
    """uint8[out, blocks, block x bits / 8]: zero is mid-range; of two in a byte the first is the low half."""
    columns = (rounded.integers.T.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 4:
        columns = columns[:, ::2] | columns[:, 1::2] << 4
    return np.asarray(columns.reshape(len(columns), len(rounded.scale), -1))
