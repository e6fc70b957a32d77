"""Choose a precision according to a CPU's instruction set extensions."""

from __future__ import annotations

from dataclasses import dataclass

from koe5_onnx.engine.machine import INT8_INSTRUCTIONS


@dataclass(frozen=True)
class Choice:
    """A precision and the reason for choosing it."""

    precision: str
    reason: str


def choose_precision(features: tuple[str, ...]) -> Choice:
    """Choose a precision for a CPU with instruction set extensions, as named by Linux (see machine.py).

    Without byte dot products, x86 adds pairs of u8 x s8 products in 16 bits, which may saturate without an
    error. int8-block has separate kernels for AVX2 and NEON.
    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    found = [name for name in INT8_INSTRUCTIONS if name in features]
    if found:
        return Choice("int8", f"this CPU adds int8 products without saturation ({', '.join(found)})")
    if not features:
        return Choice(
            "int8-block", "this system does not list its CPU's instructions, and int8-block requires none"
        )
    return Choice(
        "int8-block",
        f"this CPU has none of {', '.join(INT8_INSTRUCTIONS)}, so sums of int8 products may saturate without "
        "an error; int8-block is slower but uses other kernels",
    )
