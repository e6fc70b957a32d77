"""Which precision suits a CPU, by its instructions."""

from __future__ import annotations

from dataclasses import dataclass

from koe5_onnx.engine.machine import INT8_INSTRUCTIONS


@dataclass(frozen=True)
class Choice:
    """A precision, and why."""

    precision: str
    reason: str


def choose_precision(features: tuple[str, ...]) -> Choice:
    """Choose for a CPU with some instruction set extensions, by the kernel's names (see machine.py).

    Without dot products of bytes x86 adds products of u8 x s8 in pairs of 16 bits, which may saturate:
    int8 would be wrong there without notice. int8-block has kernels of its own for AVX2 and NEON.
    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    found = [name for name in INT8_INSTRUCTIONS if name in features]
    if found:
        return Choice("int8", f"this CPU multiplies bytes with exact sums ({', '.join(found)})")
    if not features:
        return Choice("int8-block", "this system does not name its CPU's instructions: int8-block needs none")
    return Choice(
        "int8-block",
        f"this CPU has none of {', '.join(INT8_INSTRUCTIONS)}: sums of int8 products may saturate "
        "unnoticed; int8-block is slower and has kernels of its own",
    )
