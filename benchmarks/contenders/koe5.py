"""This project, with default settings except for the threads and the contender's options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.contenders.engine import Array, Engine, Opening

BATCHES: Sequence[int] = ()
"""Empty, because the default batch size is measured, or the one that `tune` has stored."""


def load() -> Mapping[str, str]:
    """Import the library and return its versions."""
    import koe5_onnx
    from koe5_onnx.engine.providers import import_onnxruntime

    return {"koe5-onnx": koe5_onnx.__version__, "onnxruntime": str(import_onnxruntime().__version__)}


def open_engine(opening: Opening) -> Engine:
    """Open an artifact."""
    return _Koe5(opening)


class _Koe5:
    def __init__(self, opening: Opening) -> None:
        import warnings

        from koe5_onnx import Embedder, TruncationWarning

        warnings.simplefilter("ignore", TruncationWarning)  # truncation is intended
        self.batch = 0
        self._embedder = Embedder.open(
            opening.files,
            threads=opening.threads,
            **opening.options,
        )
        self.about = self._embedder.session.graph.reason
        """Which graph runs and why; recorded with the results."""
        if opening.options.get("device", "cpu") != "cpu":
            embedder = self._embedder
            self.about += f"; {embedder.parallel_batches} x {embedder.max_batch_tokens:,} tokens"

    def embed(self, texts: Sequence[str]) -> Array:
        # The prompt is empty, because the texts include their prompts.
        if len(set(texts)) == len(texts):
            return self._embedder.encode(texts, prompt="")
        # `encode` would compute equal texts once, which no other contender does.
        encoded, windows = self._embedder.tokenize_windows(texts, "")
        for tokens, out in windows:
            out[:] = self._embedder.embed_tokens(tokens)
        return encoded.embeddings
