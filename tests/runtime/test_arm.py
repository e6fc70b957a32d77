"""Artifacts in fp32 and int8 on an emulated ARM CPU. `make arm` runs these tests."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tolerances

from koe5_onnx import Embedder

FOLDER = os.environ.get("KOE5_ARM_ARTIFACTS", "")
LARGEST_DIFFERENCE = {
    ("fp32", "padded"): tolerances.FP32_MAX_ABS_DIFF,
    ("int8-block", "padded"): tolerances.GOLDEN_MAX_ABS_DIFF,
    ("int8", "padded"): tolerances.GOLDEN_MAX_ABS_DIFF,
    ("int8", "packed"): tolerances.GOLDEN_MAX_ABS_DIFF,
}

pytestmark = pytest.mark.skipif(platform.machine() != "aarch64", reason="`make arm` emulates an ARM CPU")


@pytest.fixture(params=LARGEST_DIFFERENCE, ids="-".join)
def opened(request):
    precision, graph = request.param
    with Embedder.open(Path(FOLDER) / precision, threads=1, graph=graph) as embedder:
        yield embedder, LARGEST_DIFFERENCE[request.param]


@pytest.mark.filterwarnings("ignore:.*truncated")
def test_agrees_with_pytorch(opened, golden):
    embedder, largest = opened
    for text, prompt, expected in zip(golden.texts, golden.prompts, golden.embeddings, strict=True):
        assert np.abs(embedder.encode([text], prompt)[0] - expected).max() <= largest, text


def test_independent_of_the_batch(opened, golden):
    embedder, _ = opened
    texts = golden.texts[:40]
    alone = np.vstack([embedder.encode([text]) for text in texts])
    np.testing.assert_array_equal(embedder.encode(texts), alone)


def test_doctor_names_the_instructions():
    command = [sys.executable, "-m", "koe5_onnx.cli", "doctor", "--artifact", str(Path(FOLDER) / "int8")]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "asimddp i8mm bf16" in shown
    assert "dot product instructions" in shown
    assert "the packed graph, on neon_i8mm" in shown
    assert shown.endswith("no problems found\n")
