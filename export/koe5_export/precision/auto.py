"""Choose a precision for a CPU from its instructions and the installed kernels."""

from __future__ import annotations

from dataclasses import dataclass

from koe5_onnx.engine.machine import INT8_INSTRUCTIONS


@dataclass(frozen=True)
class Choice:
    """A precision and the reason for choosing it."""

    precision: str
    reason: str


def choose_precision(features: tuple[str, ...], kernels: str | None) -> Choice:
    """Choose a precision for a CPU with the flags `features`, as named by Linux (see machine.py).

    An x86 CPU without dot-product instructions for bytes adds two products of uint8 and int8 values in 16
    bits. In ONNX Runtime's operators, this sum may saturate without an error. int8-block runs other operators
    on AVX2 and NEON. The fused kernels are exact and twice as fast as int8-block.
    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html

    Args:
        features: Flags of the CPU.
        kernels: Level of the fused kernels, or None if they cannot run.
    """
    found = [name for name in INT8_INSTRUCTIONS if name in features]
    if found:
        return Choice("int8", f"this CPU adds int8 products without saturation ({', '.join(found)})")
    if kernels is not None:
        return Choice("int8", f"the fused kernels add int8 products without saturation, on {kernels}")
    if not features:
        return Choice(
            "int8-block", "this system does not list its CPU's instructions, and int8-block requires none"
        )
    return Choice(
        "int8-block",
        f"this CPU has none of {', '.join(INT8_INSTRUCTIONS)}, and the fused kernels cannot run, so sums of "
        "int8 products may saturate without an error; int8-block is slower but uses other operators",
    )
