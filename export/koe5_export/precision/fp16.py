"""Weights and hidden states in fp16, for CUDA.

Products are summed in fp32 by the GPU's matrix units, norms and softmax compute in fp32 between fp16 inputs
and outputs, and the last norm, pooling and normalization are fp32 throughout.

fp16 ends at 65,504, and trained encoders have residual channels far larger than the rest. Two things keep
them in range at no cost. A residual sum is never stored: the norm's node adds it up in fp32. And whatever
flows from a norm to a linear, or from a linear to a norm, is kept at a 32nd of its size: norms give a 32nd,
the linears behind them have weights 32 times as large, and those in front of a norm give a 32nd again. All
of these are powers of two, so that nothing is rounded anew but what is below 2^-24.
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
from koe5_onnx import CheckpointError, Target

Half = npt.NDArray[np.float16]
_LARGEST = float(np.finfo(np.float16).max)


class Fp16(Precision):
    """Weights and hidden states in fp16."""

    name = "fp16"
    gate = Gate(cosine_min=0.9999, cosine_mean=0.9999)
    # ONNX Runtime has hardly any fp16 kernels for x86 CPUs: it would convert back and forth at every node.
    target = Target(devices=("cuda",), instructions=(), without="")
    weight_bytes = 2.0
    table_bytes = 2.0
    masks_by_length = True
    adds_in_norm = True
    residual_scale = 2.0**-5

    def recipe(self) -> Mapping[str, Any]:
        return {"residual_scale": self.residual_scale}

    def prepare(self, layer: SmoothLayer) -> SmoothLayer:
        scale = np.float32(self.residual_scale)
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
        self, g: GraphWriter, name: str, shape: tuple[int, ...], rows: Iterable[Array], ids: str
    ) -> str:
        narrowed = (_narrowed(name, block) for block in rows)
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


def _norm_scaled(norm: Norm, scale: np.float32) -> Norm:
    return Norm(norm.gain * scale, norm.shift * scale)


def _read_scaled(linear: Linear, scale: np.float32) -> Linear:
    """The same result from inputs that are scaled."""
    return replace(linear, weight=linear.weight / scale)


def _result_scaled(linear: Linear, scale: np.float32) -> Linear:
    """A scaled result from the same inputs."""
    return replace(linear, weight=linear.weight * scale, bias=linear.bias * scale)


def _narrowed(name: str, value: Array) -> Half:
    largest = float(np.abs(value).max())
    if not largest <= _LARGEST:
        raise CheckpointError(
            f"{name} holds {largest:g}, and fp16 ends at {_LARGEST:g}: export with another precision"
        )
    return value.astype(np.float16)
