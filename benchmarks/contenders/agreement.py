"""Compare a contender's embeddings with PyTorch's before timing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import read_contract
from koe5_export.reference import embed_reference, reference_versions

from benchmarks.cache import embed_cached
from benchmarks.contenders.engine import Array
from benchmarks.contenders.registry import Contender


@dataclass(frozen=True)
class SpotCheck:
    """Agreement of a contender's embeddings with PyTorch's."""

    cosine_min: float
    own_is_nearest: bool
    """True if each embedding is nearest to PyTorch's embedding of the same text. Cosines alone are not a
    sufficient check, because different texts can have similar embeddings."""

    def fault(self, contender: Contender) -> str | None:
        """Return a description of the disagreement, or None."""
        if not self.cosine_min >= contender.least_cosine:
            return f"cosine to PyTorch is {self.cosine_min:.4f}, expected at least {contender.least_cosine}"
        return (
            None if self.own_is_nearest else "an embedding is nearest to PyTorch's embedding of another text"
        )


def reference_of(checkpoint: Path, texts: Sequence[str], folder: Path) -> Array:
    """Return PyTorch's fp32 embeddings, float32[n, dim], of texts that include prompts. Cached in `folder`.

    Raises:
        CheckpointError: The checkpoint cannot be used.
    """
    opened = Checkpoint.open(str(checkpoint))
    contract, source = read_contract(opened, None), opened.source()
    identity = {"weights": source.weights_sha256, "max_tokens": contract.max_tokens, **reference_versions()}
    return embed_cached(folder, identity, texts, lambda some: embed_reference(checkpoint, contract, some))


def compare(found: Array, reference: Array) -> SpotCheck:
    """Compare embeddings of the same texts, float32[n, dim] each."""
    if found.shape != reference.shape:
        return SpotCheck(float("nan"), own_is_nearest=False)
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (found, reference))
    similarity = a.astype(np.float64) @ b.T.astype(np.float64)
    own = np.diagonal(similarity)
    nearest = bool((similarity.argmax(axis=1) == np.arange(len(a))).all())
    return SpotCheck(float(own.min()), nearest)
