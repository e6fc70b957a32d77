"""An embedding table in 8 bits, which all quantized precisions share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from koe5_export.rounding import round_columns
from koe5_export.weights import Array
from koe5_export.writer import GraphWriter


def int8_table(g: GraphWriter, name: str, shape: tuple[int, ...], rows: Iterable[Array], ids: str) -> str:
    """Rows of a table stored as int8 with a scale per row: float32[n, width, hidden]."""
    scales: list[Array] = []

    def quantized() -> Iterable[npt.NDArray[np.int8]]:
        for block in rows:
            rounded = round_columns(block.T)
            scales.append(rounded.scale[0])
            yield rounded.integers.T

    weight = g.stream(f"{name}.weight", np.int8, shape, quantized())
    scale = g.constant(f"{name}.scale", np.concatenate(scales)[:, None])
    # DequantizeLinear on the constant would be folded back to fp32; what is gathered first is not.
    gathered = g.node("Gather", [weight, ids], f"{name}.int8")
    integers = g.node("Cast", [gathered], f"{name}.cast", to=TensorProto.FLOAT)
    return g.node("Mul", [integers, g.node("Gather", [scale, ids], f"{name}.row_scale")], name)
