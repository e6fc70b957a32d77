"""Every contender by name: its library, its files, its environment, and how close it must come to PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from koe5_onnx import InputError

ROOT = Path(__file__).resolve().parents[2]
OWN = "own"
"""The environment of this process; the others are folders `.venv-NAME` that `make contenders` makes."""


@dataclass(frozen=True)
class Contender:
    """One row of every table."""

    name: str
    family: str
    """The engine's file in this folder."""
    files: str
    """"artifact PRECISION", "prepared KIND", or "checkpoint"."""
    least_cosine: float
    """To PyTorch in fp32; below it the contender is wrong and is not timed."""
    environment: str = OWN
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether it is this project."""
        return self.family == "koe5"

    @property
    def python(self) -> Path:
        """Its environment's interpreter.

        Raises:
            InputError: The environment was not made.
        """
        return python_of(self.environment)


def python_of(environment: str) -> Path:
    """The interpreter of an environment.

    Raises:
        InputError: It was not made.
    """
    if environment == OWN:
        return Path(sys.executable)
    python = ROOT / f".venv-{environment}" / "bin" / "python"
    if not python.is_file():
        raise InputError(f"{python} is missing: run make contenders, or leave its contenders out")
    return python


_FP32, _BF16, _INT8, _INT4 = 0.9999, 0.99, 0.97, 0.85
# One scale for a whole tensor: its own users measure 0.89 to 0.98 on trained weights.
_INT8_PER_TENSOR = 0.85

CONTENDERS: Mapping[str, Contender] = {
    one.name: one
    for one in (
        Contender("koe5-fp32", "koe5", "artifact fp32", _FP32),
        Contender("koe5-int8", "koe5", "artifact int8", _INT8),
        Contender("koe5-int8-stock", "koe5", "artifact int8", _INT8, options={"kernels": "stock"}),
        Contender("koe5-int8-block", "koe5", "artifact int8-block", _INT8),
        Contender("koe5-int4-block", "koe5", "artifact int4-block", _INT4),
        Contender(
            "sentence-transformers-fp32",
            "sentence_transformers",
            "checkpoint",
            _FP32,
            "contenders",
            {"dtype": "float32"},
        ),
        Contender(
            "sentence-transformers-bf16",
            "sentence_transformers",
            "checkpoint",
            _BF16,
            "contenders",
            {"dtype": "bfloat16"},
        ),
        Contender("ort-fp32", "onnxruntime", "prepared onnx", _FP32, "contenders"),
        Contender(
            "ort-dynamic-int8", "onnxruntime", "prepared ort-dynamic-int8", _INT8_PER_TENSOR, "contenders"
        ),
        Contender(
            "openvino-int8", "openvino", "prepared openvino-int8", _INT8, "contenders", {"hint": "bf16"}
        ),
        Contender(
            "openvino-bf16", "openvino", "prepared openvino-fp32", _BF16, "contenders", {"hint": "bf16"}
        ),
        Contender("ctranslate2-int8", "ctranslate2", "prepared ctranslate2-int8", _INT8, "contenders"),
        Contender("fastembed", "fastembed", "prepared onnx", _FP32, "fastembed"),
    )
}


def chosen(names: Sequence[str] | None) -> list[Contender]:
    """The contenders of these names, in this order; all of them for None.

    Raises:
        InputError: A name is unknown or given twice.
    """
    if names is None:
        return list(CONTENDERS.values())
    if strangers := [name for name in names if name not in CONTENDERS]:
        raise InputError(f"{strangers[0]!r} is no contender: expected one of {', '.join(CONTENDERS)}")
    if len(set(names)) < len(names):
        raise InputError(f"a contender is given twice: {', '.join(names)}")
    return [CONTENDERS[name] for name in names]
