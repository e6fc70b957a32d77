"""An artifact of a model that was trained to be shortened, and what its shortened embeddings must be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

DIMS = [8, 16]
"""Below the 32 of the tiny artifact."""


def allow(artifact: Path, copy: Path, **contract: object) -> Path:
    """Copy an artifact with DIMS, or whatever else is given, in its contract."""
    shutil.copytree(artifact, copy)
    file = copy / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest["contract"] |= {"matryoshka_dims": DIMS, **contract}
    file.write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    return copy


def cut(embeddings: np.ndarray, dim: int) -> np.ndarray:
    """Shortened embeddings, in float64."""
    rows = embeddings[:, :dim].astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
