"""Weights and products in fp32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from koe5_export.gate import Gate
from koe5_export.precision.precision import Precision
from koe5_export.weights import Array, Linear
from koe5_export.writer import GraphWriter
from koe5_onnx.artifact import PRECISIONS, Target


class Fp32(Precision):
    """Weights and products in fp32."""

    name = "fp32"
    gate = Gate(cosine_min=0.999999, cosine_mean=0.999999, max_abs_diff=1e-5)
    target = Target(devices=PRECISIONS["fp32"], instructions=(), without="")
    weight_bytes = 4.0
    table_bytes = 4.0

    def table(
        self, g: GraphWriter, name: str, shape: tuple[int, int], rows: Iterable[Array], ids: str
    ) -> str:
        return g.node("Gather", [g.stream(f"{name}.weight", np.float32, shape, rows), ids], name)

    def project(self, g: GraphWriter, x: str, linears: Sequence[tuple[str, Linear]]) -> list[str]:
        return [
            g.node("MatMul", [x, g.constant(f"{name}.weight", linear.weight)], name)
            for name, linear in linears
        ]
