"""Precisions of an export. Each one defines how embedding tables and linear layers are written."""

from __future__ import annotations

from collections.abc import Mapping

from koe5_export.gate import Gate
from koe5_export.precision.block import Block
from koe5_export.precision.fp16 import Fp16
from koe5_export.precision.fp32 import Fp32
from koe5_export.precision.int8 import Int8
from koe5_export.precision.precision import Precision

_INT8_BLOCK = Block(
    "int8-block", bits=8, block=32, strength=0.5, gate=Gate(cosine_min=0.99, cosine_mean=0.998)
)
_INT4_BLOCK = Block(
    "int4-block", bits=4, block=128, strength=0.15, gate=Gate(cosine_min=0.92, cosine_mean=0.96)
)

PRECISIONS: Mapping[str, Precision] = {
    precision.name: precision for precision in (Fp32(), Fp16(), Int8(), _INT8_BLOCK, _INT4_BLOCK)
}

__all__ = ["PRECISIONS", "Precision"]
