"""Importing koe5_onnx loads no large packages. import-linter checks the imports allowed in pyproject.toml."""

from __future__ import annotations

import pytest

HEAVY = (
    "asyncio",
    "fastapi",
    "huggingface_hub",
    "ml_dtypes",
    "onnx",
    "onnxruntime",
    "optimum",
    "pyarrow",
    "ray",
    "safetensors",
    "torch",
    "tqdm",
    "transformers",
)


@pytest.mark.parametrize(
    "code",
    [
        "import koe5_onnx, sys; assert 'koe5_export' not in sys.modules",
        "import koe5_onnx.cli; koe5_onnx.cli.parse(['doctor'])",
    ],
)
def test_importing_is_light(run_python, code):
    done = run_python(f"{code}\nimport sys\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))")
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_encoding_loads_the_runtime_only(run_python, artifact_path):
    code = f"""
import sys
from koe5_onnx import Embedder
Embedder.open(sys.argv[1], threads=1).encode(["가"])
print(*sorted(set(sys.modules) & set({HEAVY!r})))
"""
    assert run_python(code, artifact_path).stdout == "onnxruntime\n"
