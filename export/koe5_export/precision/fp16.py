"""Weights and hidden states in fp16, for CUDA.

The GPU's matrix units sum products in fp32. Norms and softmax compute in fp32 and have fp16 inputs and
outputs. The last norm, pooling and normalization are fp32 throughout.

The largest fp16 value is 65,504, and trained encoders have residual channels far larger than the others. Two
measures keep these channels in range at no cost:

- A residual sum is never stored in fp16. The node of the norm computes it in fp32, for which the runtime sets
  `enable_skip_layer_norm_strict_mode`.
- Outputs of norms and terms of residual sums are scaled by 1/32. For this, the parameters of norms and of
  linear layers before a residual sum are multiplied by 1/32, and the weights of linear layers after a norm by
  32. The scale is a power of two, so it adds no rounding error, except to values that become subnormal.

Attention needs no biases for keys and values, so the packed graph for CUDA has none (packed_cuda.py). A bias
of the keys adds the same number to all scores of a query, which does not change the softmax. A bias of the
values is added to each weighted sum of values, because the weights sum to 1, so it moves to the bias of the
next linear layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from koe5_export.gate import Gate
from koe5_export.precision.precision import Precision
from koe5_export.smooth import SmoothLayer
from koe5_export.weights import Array, Linear, Norm
from koe5_export.writer import GraphWriter
from koe5_onnx import CheckpointError
from koe5_onnx.artifact import PRECISIONS, Target

Half = npt.NDArray[np.float16]
_LARGEST = float(np.finfo(np.float16).max)


class Fp16(Precision):
    """Weights and hidden states in fp16."""

    name = "fp16"
    gate = Gate(cosine_min=0.9999, cosine_mean=0.9999)
    # CUDA only: ONNX Runtime has few fp16 kernels for x86 and would convert to fp32 and back at each node.
    target = Target(devices=PRECISIONS["fp16"], instructions=(), without="")
    weight_bytes = 2.0
    table_bytes = 2.0
    masks_by_length = True
    adds_in_norm = True
    residual_scale = 2.0**-5

    def recipe(self) -> Mapping[str, Any]:
        return {"residual_scale": self.residual_scale}

    def prepare(self, layer: SmoothLayer) -> SmoothLayer:
        scale = np.float32(self.residual_scale)
        layer = _without_key_and_value_bias(layer)
        return replace(
            layer,
            input_norm=_norm_scaled(layer.input_norm, scale),
            query=_read_scaled(layer.query, scale),
            key=_read_scaled(layer.key, scale),
            value=_read_scaled(layer.value, scale),
            attention_norm=_norm_scaled(layer.attention_norm, scale),
            up=_read_scaled(layer.up, scale),
            output=_result_scaled(layer.output, scale),
            down=_result_scaled(layer.down, scale),
        )

    def table(
        self, g: GraphWriter, name: str, shape: tuple[int, int], rows: Iterable[Array], ids: str
    ) -> str:
        narrowed = (_narrowed(name, part) for part in rows)
        return g.node("Gather", [g.stream(f"{name}.weight", np.float16, shape, narrowed), ids], name)

    def positions(self, g: GraphWriter, table: Array, ids: str) -> str:
        return self.table(g, "positions", table.shape, [table], ids)

    def project(self, g: GraphWriter, x: str, linears: Sequence[tuple[str, Linear]]) -> list[str]:
        return [
            g.node("MatMul", [x, self.vector(g, f"{name}.weight", linear.weight)], name)
            for name, linear in linears
        ]

    def vector(self, g: GraphWriter, name: str, value: Array) -> str:
        return g.constant(name, _narrowed(name, value))

    def widen(self, g: GraphWriter, x: str) -> str:
        return g.node("Cast", [x], f"{x}.float", to=TensorProto.FLOAT)


def _without_key_and_value_bias(layer: SmoothLayer) -> SmoothLayer:
    value, output = layer.value, layer.output
    return replace(
        layer,
        key=replace(layer.key, bias=np.zeros_like(layer.key.bias)),
        value=replace(value, bias=np.zeros_like(value.bias)),
        output=replace(output, bias=output.bias + value.bias @ output.weight),
    )


def _norm_scaled(norm: Norm, scale: np.float32) -> Norm:
    return Norm(norm.gain * scale, norm.shift * scale)


def _read_scaled(linear: Linear, scale: np.float32) -> Linear:
    """Return a linear layer whose outputs stay the same if its inputs are multiplied by `scale`."""
    return replace(linear, weight=linear.weight / scale)


def _result_scaled(linear: Linear, scale: np.float32) -> Linear:
    return replace(linear, weight=linear.weight * scale, bias=linear.bias * scale)


def _narrowed(name: str, value: Array) -> Half:
    largest = float(np.abs(value).max())
    if not largest <= _LARGEST:
        raise CheckpointError(
            f"{name} contains {largest:g}; the largest fp16 value is {_LARGEST:g}. "
            "Export with another precision"
        )
    return value.astype(np.float16)
