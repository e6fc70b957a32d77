"""8-bit embedding tables, which all quantized precisions use."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from koe5_export.rounding import round_columns
from koe5_export.weights import Array
from koe5_export.writer import GraphWriter

_BLOCK = 64
"""Values per scale in a row."""


def table_block(width: int) -> int:
    """Return the number of values per scale: 64, or the width if 64 does not divide it."""
    return width if width % _BLOCK else _BLOCK


def int8_table(g: GraphWriter, name: str, shape: tuple[int, int], rows: Iterable[Array], ids: str) -> str:
    """Add an int8 table with one scale per block of a row, and a lookup of ids (see `Precision.table`)."""
    block = table_block(shape[1])
    scales: list[Array] = []

    def quantized() -> Iterable[npt.NDArray[np.int8]]:
        for some in rows:
            rounded = round_columns(some.reshape(-1, block).T)
            scales.append(rounded.scale[0].reshape(len(some), -1))
            yield rounded.integers.T.reshape(some.shape)

    weight = g.stream(f"{name}.weight", np.int8, shape, quantized())
    scale = g.constant(f"{name}.scale", np.concatenate(scales))
    # Gather before dequantizing: ONNX Runtime would replace a dequantized constant by an fp32 table.
    looked_up = [
        g.node("Gather", [weight, ids], f"{name}.int8"),
        g.node("Gather", [scale, ids], f"{name}.row_scale"),
    ]
    return g.node("DequantizeLinear", looked_up, name, axis=-1, block_size=block)
