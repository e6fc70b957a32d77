"""8-bit weights and activations, for CPUs with dot-product instructions.

If the error of a linear layer on calibration texts would be too large, and blocks reduce it enough, the layer
is quantized in blocks (block.py). Blocks are slower, but an outlier affects only its own block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from onnx import numpy_helper

from koe5_export.gate import Gate
from koe5_export.precision.block import SHORTEST_BLOCK, block_of, block_product
from koe5_export.precision.precision import Precision
from koe5_export.precision.table import int8_table
from koe5_export.rounding import DAMPING, Compensation, round_blocks, round_columns
from koe5_export.smooth import LinearInputs, Strengths
from koe5_export.weights import Array, Linear, Rounded
from koe5_export.writer import MICROSOFT, GraphWriter
from koe5_onnx.artifact import PRECISIONS, Target
from koe5_onnx.engine.machine import INT8_INSTRUCTIONS

_TOLERATED_ERROR = 0.05
"""Maximum relative error of a linear layer's outputs without blocks. In a trained MiniLM, most layers have an
error of 0.01, and one has 0.02."""
_WORTHWHILE_GAIN = 2.0
"""Minimum factor by which blocks must reduce the error, because they run at about half the speed."""
_FINER_BLOCK = 32
_ZERO = 128
"""Zero point of the activations."""
_TINY = np.float32(1e-12)
"""Smallest scale, so that a row of zeros is not divided by zero."""


class Int8(Precision):
    """Precision with 8-bit weights (one scale per output channel) and activations (one scale per token).

    Activations have a scale per token, not per tensor, because the embedding of a text must not depend on the
    other texts in its batch. They are uint8 with the zero point 128, because x86 CPUs have instructions for
    products of uint8 and int8.
    """

    name = "int8"
    gate = Gate(cosine_min=0.99, cosine_mean=0.998)
    target = Target(
        devices=PRECISIONS["int8"],
        instructions=INT8_INSTRUCTIONS,
        without="int8 is slow. Export with int8-block instead",
    )
    weight_bytes = 1.0
    table_bytes = 1.0
    strengths = Strengths(attention=0.8, context=0.4, ffn=0.6, gelu=0.4)

    def recipe(self) -> dict[str, Any]:
        return {
            "weights": "int8, one scale per column, rounded with error compensation",
            "activations": "uint8, one scale per token, rotated in blocks of up to 64",
            "embeddings": "int8, one scale per block of a row",
            "rounding_damping": DAMPING,
        }

    def round_weight(self, weight: Array, inputs: LinearInputs, compensation: Compensation) -> Rounded:
        rounded = round_columns(weight, compensation)
        block = block_of(_FINER_BLOCK, weight)
        error = relative_error(per_token(inputs), rounded, inputs.sample, weight)
        if error <= _TOLERATED_ERROR or block < SHORTEST_BLOCK:
            return rounded
        finer = round_blocks(weight, 8, block, compensation)
        finer_error = relative_error(_per_block(inputs.sample, block), finer, inputs.sample, weight)
        return finer if _WORTHWHILE_GAIN * finer_error <= error else rounded

    def is_exception(self, rounded: Rounded) -> bool:
        return len(rounded.scale) > 1

    def table(
        self, g: GraphWriter, name: str, shape: tuple[int, int], rows: Iterable[Array], ids: str
    ) -> str:
        return int8_table(g, name, shape, rows, ids)

    def project(self, g: GraphWriter, x: str, linears: Sequence[tuple[str, Linear]]) -> list[str]:
        if all(_in_blocks(linear) for _, linear in linears):
            return [_block_product(g, x, name, linear) for name, linear in linears]
        scale = _scale(g, x)
        quantized = _quantize(g, x, scale, len(linears[0][1].weight))
        return [
            _block_product(g, x, name, linear)
            if _in_blocks(linear)
            else _product(g, quantized, scale, name, linear)
            for name, linear in linears
        ]


def relative_error(quantized: Array, rounded: Rounded, x: Array, weight: Array) -> float:
    """Return the relative error of quantized @ rounded, compared with x @ weight.

    Error and exact product are measured by their norms, after subtracting means over the tokens: an error in
    these means is corrected in the bias.
    """
    exact = x @ weight
    error = quantized @ rounded.weight - exact
    spread = float(np.linalg.norm(exact - exact.mean(axis=0)))
    return float(np.linalg.norm(error - error.mean(axis=0))) / max(spread, 1e-12)


def per_token(inputs: LinearInputs) -> Array:
    """Quantize and dequantize the sample of the inputs, as the graph does (see `Int8.project`)."""
    return _per_block(inputs.sample, inputs.sample.shape[1])


def _per_block(x: Array, block: int) -> Array:
    """Round each block of a row of x to multiples of 1/127 of its largest magnitude."""
    blocks = x.reshape(len(x), -1, block)
    scale = np.maximum(np.abs(blocks).max(axis=2, keepdims=True) / 127, _TINY)
    return np.asarray(np.rint(blocks / scale) * scale, dtype=np.float32).reshape(x.shape)


def _scale(g: GraphWriter, x: str) -> str:
    """Add the scale of each token of x, 1/127 of the token's largest magnitude: float32[n, width, 1]."""
    axes = g.constant("last_axis", np.array([-1], dtype=np.int64))
    largest = g.node("ReduceMax", [g.node("Abs", [x], f"{x}.abs"), axes], f"{x}.max", keepdims=1)
    step = g.node("Mul", [largest, g.constant("a_127th", np.float32(1 / 127))], f"{x}.step")
    return g.node("Max", [step, g.constant("smallest_scale", _TINY)], f"{x}.scale")


def _quantize(g: GraphWriter, x: str, scale: str, width: int) -> str:
    """Add x / scale + 128 as uint8[n, width, in]. The argument `width` is the number of channels, `in`."""
    return g.node("QuantizeLinear", [x, scale, _zero_points(g)], f"{x}.uint8", axis=-1, block_size=width)


def _zero_points(g: GraphWriter) -> str:
    """Add uint8[n, width, 1] filled with the zero point 128, once per graph."""
    if not g.has("zeros"):
        one = g.constant("shape_1", np.array([1], dtype=np.int64))
        g.node("Concat", [g.node("Shape", ["input_ids"], "ids_shape"), one], "rows_shape", axis=0)
        zero = numpy_helper.from_array(np.array([_ZERO], np.uint8))
        g.node("ConstantOfShape", ["rows_shape"], "zeros", value=zero)
    return "zeros"


def _in_blocks(linear: Linear) -> bool:
    return len(_rounded(linear).scale) > 1


def _block_product(g: GraphWriter, x: str, name: str, linear: Linear) -> str:
    return block_product(g, x, name, _rounded(linear), 8)


def _rounded(linear: Linear) -> Rounded:
    if linear.rounded is None:
        raise ValueError("int8 requires rounded weights. Smooth the layer with round_weight first")
    return linear.rounded


def _product(g: GraphWriter, quantized: str, row_scale: str, name: str, linear: Linear) -> str:
    """Add x @ weight, float32[n, width, out], where x is uint8 with one scale per token."""
    rounded = _rounded(linear)
    inputs = [
        quantized,
        g.constant(f"{name}.weight", rounded.integers),
        # Scale 1: the operator would apply scales per row on one thread only, so a Mul node applies them.
        g.constant("one", np.float32(1)),
        g.constant(f"{name}.scale", rounded.scale[0]),
        g.constant("zero", np.uint8(_ZERO)),
    ]
    product = g.node("MatMulIntegerToFloat", inputs, f"{name}.unscaled", domain=MICROSOFT)
    return g.node("Mul", [product, row_scale], name)
