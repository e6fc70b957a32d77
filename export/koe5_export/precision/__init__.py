"""How tables and linear layers are written in each precision: the only place where precisions differ."""

from __future__ import annotations

from collections.abc import Mapping

from koe5_export.precision.fp32 import Fp32
from koe5_export.precision.int8 import Int8
from koe5_export.precision.precision import Precision

PRECISIONS: Mapping[str, Precision] = {precision.name: precision for precision in (Fp32(), Int8())}

__all__ = ["PRECISIONS", "Precision"]
