"""The self-test of an artifact, for runtimes other than koe5_onnx."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
from tolerances import UNIT_LENGTH_ATOL

from koe5_onnx import Artifact
from koe5_onnx.embedder import SELFTEST_COSINE

TINY = Path(__file__).parent / "data/tiny-int8"


def texts_of(folder: Path) -> list[str]:
    """Return the texts of the self-test, with their prompts."""
    return [one.text for one in Artifact.open(folder).manifest.selftest]


def require_golden(found: Any, folder: Path) -> None:
    """Check embeddings of `texts_of(folder)`.

    Raises:
        AssertionError: An embedding differs from the one that the manifest has.
    """
    golden = [one.embedding for one in Artifact.open(folder).manifest.selftest]
    require_agreement(found, [np.frombuffer(b64decode(one), "<f4") for one in golden])


def require_agreement(found: Any, expected: Any) -> None:
    """Check that embeddings have unit length and the direction of the expected ones."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=UNIT_LENGTH_ATOL)
    cosines = (found * expected).sum(axis=1)
    assert cosines.min() >= SELFTEST_COSINE, cosines
