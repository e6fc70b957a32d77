"""sentence-transformers with PyTorch, on a CPU or a GPU. Its `encode` sorts texts by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.contenders.engine import MAX_TOKENS, Array, Engine, Opening

BATCHES: Sequence[int] = (1, 4, 16, 32)
"""Texts per batch; 32 is the default."""


def load() -> Mapping[str, str]:
    """Import the library and return its versions."""
    import sentence_transformers
    import torch

    return {"sentence-transformers": sentence_transformers.__version__, "torch": torch.__version__}


def open_engine(opening: Opening) -> Engine:
    """Open a checkpoint in the data type `options["dtype"]`.

    Other options: "device", "attention" (transformers' attn_implementation), "compile" (torch.compile).
    """
    return _SentenceTransformers(opening)


class _SentenceTransformers:
    def __init__(self, opening: Opening) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(opening.threads)
        dtype = getattr(torch, opening.options["dtype"])
        self.batch = opening.batch or 32
        kwargs = {"dtype": dtype}
        if "attention" in opening.options:
            kwargs["attn_implementation"] = opening.options["attention"]
        device = opening.options.get("device", "cpu")
        self._encoder = SentenceTransformer(
            str(opening.files), device=device, model_kwargs=kwargs, local_files_only=True
        )
        self._encoder.max_seq_length = MAX_TOKENS
        if opening.options.get("compile"):
            self._encoder[0].auto_model.compile(dynamic=True)

    def embed(self, texts: Sequence[str]) -> Array:
        found = self._encoder.encode(
            list(texts), batch_size=self.batch, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(found, np.float32)
