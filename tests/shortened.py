"""An artifact with Matryoshka dimensions, and its expected shortened embeddings."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from edited_json import set_contract

DIMS = [8, 16]
"""Dimensions smaller than the 64 of the tiny artifact."""


def allow(artifact: Path, copy: Path, **contract: object) -> Path:
    """Copy an artifact and change its contract: `matryoshka_dims` becomes DIMS, and `contract` is applied."""
    shutil.copytree(artifact, copy)
    set_contract(copy, **{"matryoshka_dims": DIMS, **contract})
    return copy


def cut(embeddings: np.ndarray, dim: int) -> np.ndarray:
    """Return the first `dim` components of embeddings, normalized, in float64."""
    rows = embeddings[:, :dim].astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
