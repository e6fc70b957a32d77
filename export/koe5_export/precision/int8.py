"""8-bit weights and activations, for CPUs with dot-product instructions.

A linear whose outputs on calibration texts would be too far off this way is written in blocks (block.py),
which cost speed and keep outliers to themselves. Smoothing sees to it that this is rare.
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
from koe5_export.smooth import Inputs, Strengths
from koe5_export.weights import Array, Linear, Rounded
from koe5_export.writer import MICROSOFT, GraphWriter
from koe5_onnx import Target
from koe5_onnx.engine.machine import INT8_INSTRUCTIONS

_TOLERATED_ERROR = 0.05
"""Error of a linear's outputs, relative, that stays; most of trained MiniLM's are at 0.01, one at 0.02."""
_WORTHWHILE_GAIN = 2.0
"""How many times smaller the error must become for a linear to stay in blocks, at about half the speed."""
_FINER_BLOCK = 32
_ZERO = 128
"""What stands for zero in the activations."""
_TINY = np.float32(1e-12)
"""Keeps the scale of an all-zero row from dividing by zero."""


class Int8(Precision):
    """8-bit weights with a scale per output channel, 8-bit activations with a scale per token.

    A scale per token, never per tensor: the embedding of a text must not depend on its neighbors. The
    product is u8 x s8, the one that CPUs have instructions for; 128 stands for zero in the activations.
    """

    name = "int8"
    gate = Gate(cosine_min=0.99, cosine_mean=0.998)
    target = Target(
        devices=("cpu",),
        instructions=INT8_INSTRUCTIONS,
        without="slow, and on x86 sums of products may saturate: export int8-block instead",
    )
    weight_bytes = 1.0
    table_bytes = 1.0
    strengths = Strengths(attention=0.8, context=0.4, ffn=0.6)

    def recipe(self) -> dict[str, Any]:
        return {
            "weights": "int8 a column, rounded with error compensation",
            "activations": "uint8 a token, rotated in blocks of up to 64",
            "embeddings": "int8 a row",
            "rounding_damping": DAMPING,
        }

    def round_weight(self, weight: Array, inputs: Inputs, compensation: Compensation) -> Rounded:
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
        self, g: GraphWriter, name: str, shape: tuple[int, ...], rows: Iterable[Array], ids: str
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
    """Size of quantized @ rounded - x @ weight relative to x @ weight, both without their means: biases."""
    exact = x @ weight
    error = quantized @ rounded.weight - exact
    spread = float(np.linalg.norm(exact - exact.mean(axis=0)))
    return float(np.linalg.norm(error - error.mean(axis=0))) / max(spread, 1e-12)


def per_token(inputs: Inputs) -> Array:
    """What the graph's 8-bit integers stand for, of the inputs' sample: the same steps as in `project`."""
    return _per_block(inputs.sample, inputs.sample.shape[1])


def _per_block(x: Array, block: int) -> Array:
    """x in steps of a 127th of the largest magnitude in each block of a row."""
    blocks = x.reshape(len(x), -1, block)
    scale = np.maximum(np.abs(blocks).max(axis=2, keepdims=True) / 127, _TINY)
    return np.asarray(np.rint(blocks / scale) * scale, dtype=np.float32).reshape(x.shape)


def _scale(g: GraphWriter, x: str) -> str:
    """A 127th of the largest magnitude of each token: float32[n, width, 1]."""
    axes = g.constant("last_axis", np.array([-1], dtype=np.int64))
    largest = g.node("ReduceMax", [g.node("Abs", [x], f"{x}.abs"), axes], f"{x}.max", keepdims=1)
    step = g.node("Mul", [largest, g.constant("a_127th", np.float32(1 / 127))], f"{x}.step")
    return g.node("Max", [step, g.constant("smallest_scale", _TINY)], f"{x}.scale")


def _quantize(g: GraphWriter, x: str, scale: str, width: int) -> str:
    """uint8[n, width, in]: x / scale + 128. One block a row; the zero points need the scale's shape."""
    return g.node("QuantizeLinear", [x, scale, _zero_points(g)], f"{x}.uint8", axis=-1, block_size=width)


def _zero_points(g: GraphWriter) -> str:
    """uint8[n, width, 1] filled with 128, once for the whole graph."""
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
        raise ValueError("int8 writes rounded weights only: they are rounded while calibrating")
    return linear.rounded


def _product(g: GraphWriter, quantized: str, row_scale: str, name: str, linear: Linear) -> str:
    """x @ weight from integers, each row with its own scale."""
    rounded = _rounded(linear)
    inputs = [
        quantized,
        g.constant(f"{name}.weight", rounded.integers),
        # Its own scale stays 1: the operator would apply a scale a row on one thread.
        g.constant("one", np.float32(1)),
        g.constant(f"{name}.scale", rounded.scale[0]),
        g.constant("zero", np.uint8(_ZERO)),
    ]
    product = g.node("MatMulIntegerToFloat", inputs, f"{name}.unscaled", domain=MICROSOFT)
    return g.node("Mul", [product, row_scale], name)
