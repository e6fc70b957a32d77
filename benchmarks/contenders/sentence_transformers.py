"""sentence-transformers on PyTorch in fp32 or bf16: `encode`, which sorts by length itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.contenders.engine import MAX_TOKENS, Array, Engine, Opening

BATCHES: Sequence[int] = (1, 4, 16, 32)
"""Texts; 32 is its default."""


def load() -> Mapping[str, str]:
    """Import the library."""
    import sentence_transformers
    import torch

    return {"sentence-transformers": sentence_transformers.__version__, "torch": torch.__version__}


def open_engine(opening: Opening) -> Engine:
    """Open a checkpoint in the data type that `options["dtype"]` names."""
    return _SentenceTransformers(opening)


class _SentenceTransformers:
    def __init__(self, opening: Opening) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(opening.threads)
        dtype = getattr(torch, opening.options["dtype"])
        self.batch = opening.batch or 32
        self._encoder = SentenceTransformer(
            str(opening.files), device="cpu", model_kwargs={"dtype": dtype}, local_files_only=True
        )
        self._encoder.max_seq_length = MAX_TOKENS

    def embed(self, texts: Sequence[str]) -> Array:
        found = self._encoder.encode(
            list(texts), batch_size=self.batch, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(found, np.float32)
