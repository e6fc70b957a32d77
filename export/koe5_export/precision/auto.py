"""Choose a precision for a CPU from its instructions."""

from __future__ import annotations

from dataclasses import dataclass

from koe5_onnx.engine.machine import INT8_INSTRUCTIONS


@dataclass(frozen=True)
class Choice:
    """A precision and the reason for choosing it."""

    precision: str
    reason: str


def choose_precision(features: tuple[str, ...]) -> Choice:
    """Choose a precision for a CPU with the flags `features`, as named by Linux (see machine.py).

    int8 is at least 1.6 times as fast as int8-block on a CPU with one of INT8_INSTRUCTIONS. Without them, it
    was not measured.
    """
    found = [name for name in INT8_INSTRUCTIONS if name in features]
    if found:
        return Choice("int8", f"int8 is fast on this CPU ({', '.join(found)})")
    if not features:
        return Choice(
            "int8-block", "this system does not list its CPU's instructions, and int8-block requires none"
        )
    return Choice(
        "int8-block",
        f"this CPU has none of {', '.join(INT8_INSTRUCTIONS)}, so int8 is slow",
    )
