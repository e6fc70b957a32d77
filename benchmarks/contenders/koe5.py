"""This project: an artifact opened as the README says, with no setting but the threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.contenders.engine import Array, Engine, Opening

BATCHES: Sequence[int] = ()
"""None to try: the default is measured."""


def load() -> Mapping[str, str]:
    """Import the library."""
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

        warnings.simplefilter("ignore", TruncationWarning)  # the corpora are cut on purpose
        self.batch = 0
        self._embedder = Embedder.open(
            opening.files,
            threads=opening.threads,
            **opening.options,
        )
        self.about = self._embedder.session.graph.reason
        """Which graph runs; recorded with the results."""
        if opening.options.get("device", "cpu") != "cpu":
            embedder = self._embedder
            self.about += f"; {embedder.parallel_batches} x {embedder.max_batch_tokens:,} tokens"

    def embed(self, texts: Sequence[str]) -> Array:
        return self._embedder.encode(texts, prompt="")  # the prompts are in the texts
