"""fastembed with a custom model: the traced fp32 graph, mean pooling, texts sorted by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.contenders.engine import MAX_TOKENS, Array, Engine, Opening
from benchmarks.contenders.onnxruntime import GRAPH, HIDDEN

BATCHES: Sequence[int] = (1, 4, 16, 64)
"""Texts per batch. fastembed's default of 256 takes gigabytes with texts of 512 tokens."""
_NAME = "koe5-onnx/benchmark"


def load() -> Mapping[str, str]:
    """Import the library and return its versions."""
    import importlib.metadata

    import fastembed

    return {fastembed.__name__: importlib.metadata.version("fastembed")}


def open_engine(opening: Opening) -> Engine:
    """Register the prepared folder as a model and open it."""
    return _FastEmbed(opening)


class _FastEmbed:
    def __init__(self, opening: Opening) -> None:
        import json

        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        from koe5_onnx import Tokenizer

        config = json.loads((opening.checkpoint / "config.json").read_text(encoding="utf-8"))
        TextEmbedding.add_custom_model(
            model=_NAME,
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(hf=_NAME),
            dim=int(config["hidden_size"]),
            model_file=GRAPH,
            output_name=HIDDEN,
        )
        self.batch = opening.batch or 16
        self._tokenizer = Tokenizer(opening.checkpoint / "tokenizer.json", MAX_TOKENS)
        self._embedder = TextEmbedding(
            _NAME, specific_model_path=str(opening.files), threads=opening.threads, cuda=False
        )

    def embed(self, texts: Sequence[str]) -> Array:
        order = np.argsort(-self._tokenizer.encode(texts).lengths, kind="stable")
        found = np.stack(list(self._embedder.embed([texts[row] for row in order], batch_size=self.batch)))
        out = np.empty(found.shape, np.float32)
        out[order] = found
        return out
