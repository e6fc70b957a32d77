"""Whether a contender gives the right embedding: compared with PyTorch before anything is timed."""

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
class Agreement:
    """How a contender's embeddings compare with PyTorch's."""

    cosine_min: float
    own_is_nearest: bool
    """Each text's embedding is nearest to PyTorch's of the same text: cosines alone say little where all
    texts are alike, as they are to random weights."""

    def fault(self, contender: Contender) -> str | None:
        """What is wrong, or None."""
        if not self.cosine_min >= contender.least_cosine:
            return f"cosine {self.cosine_min:.4f} to PyTorch, expected {contender.least_cosine} or more"
        return None if self.own_is_nearest else "an embedding is nearer to another text's than to its own"


def reference_of(checkpoint: Path, texts: Sequence[str], folder: Path) -> Array:
    """PyTorch's fp32 embeddings of texts with their prompts: float32[n, dim]; computed once.

    Raises:
        CheckpointError: The checkpoint cannot be used.
    """
    opened = Checkpoint.open(str(checkpoint))
    contract, source = read_contract(opened, None), opened.source()
    identity = {"weights": source.weights_sha256, "max_tokens": contract.max_tokens, **reference_versions()}
    return embed_cached(folder, identity, texts, lambda some: embed_reference(checkpoint, contract, some))


def compare(found: Array, reference: Array) -> Agreement:
    """Compare embeddings of the same texts, float32[n, dim] each."""
    if found.shape != reference.shape:
        return Agreement(float("nan"), own_is_nearest=False)
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (found, reference))
    similarity = a.astype(np.float64) @ b.T.astype(np.float64)
    own = np.diagonal(similarity)
    nearest = bool((similarity.argmax(axis=1) == np.arange(len(a))).all())
    return Agreement(float(own.min()), nearest)
