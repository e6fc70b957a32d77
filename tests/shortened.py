"""An artifact of a model that was trained to be shortened, and what its shortened embeddings must be."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from changed_manifest import set_contract

DIMS = [8, 16]
"""Below the 64 of the tiny artifact."""


def allow(artifact: Path, copy: Path, **contract: object) -> Path:
    """Copy an artifact with DIMS, or whatever else is given, in its contract."""
    shutil.copytree(artifact, copy)
    set_contract(copy, **{"matryoshka_dims": DIMS, **contract})
    return copy


def cut(embeddings: np.ndarray, dim: int) -> np.ndarray:
    """Shortened embeddings, in float64."""
    rows = embeddings[:, :dim].astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
