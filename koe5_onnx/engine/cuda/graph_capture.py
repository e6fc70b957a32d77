"""CUDA graphs for small batches: the packed graph captured once for each bucket, then replayed.

A query's forward pass of KoE5 is 279 kernels of a few microseconds, and starting them one by one takes longer
than running them. A replay starts all at once. It requires fixed shapes (capture_shapes.py) at
fixed addresses (io_binding.py).

ONNX Runtime keeps a captured graph with the thread that captured it, and may give memory that a graph still
writes to other batches of its session. So graphs have a thread and a session of their own.
Source: cuda_execution_provider.h and cuda_graph.cc of https://github.com/microsoft/onnxruntime
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx.artifact import Manifest
from koe5_onnx.engine.batching import Batch, Packed, pack_for_cuda
from koe5_onnx.engine.cuda.capture_shapes import Bucket, buckets_up_to, fill, smallest
from koe5_onnx.engine.cuda.io_binding import FixedRun
from koe5_onnx.errors import ProviderError
from koe5_onnx.text.tokenizer import random_tokens

_AGREEMENT = 0.999
"""Least cosine of a replay to an ordinary run of the same shape: only the order of some sums may differ."""

Run = Callable[[Packed], npt.NDArray[np.float32]]


class CapturedGraphs:
    """The captured graphs of one artifact on one GPU; safe to use from several threads, one runs at a time.

    Each graph is checked before it is trusted: with other ids than it was captured with, and after all others
    were captured, its replay must give what an ordinary run gives.

    Args:
        ort: The module onnxruntime.
        open_session: Opens the packed graph for capturing; called and used on this object's own thread.
        ordinary: Runs a batch without a captured graph.
        manifest: Of the artifact.
        device: Type and number, as ("cuda", 0).

    Raises:
        ProviderError: A graph cannot be captured, or its replay differs.
    """

    def __init__(
        self,
        ort: Any,
        open_session: Callable[[], Any],
        ordinary: Run,
        manifest: Manifest,
        device: tuple[str, int],
    ) -> None:
        self._manifest, self._contract = manifest, manifest.contract
        self.buckets = buckets_up_to(self._contract.max_tokens)
        self._runs: dict[Bucket, FixedRun] = {}
        self._thread = ThreadPoolExecutor(1, "koe5-cuda-graphs")
        try:
            self._thread.submit(self._capture, ort, open_session, device).result()
            self._check(ordinary)
        except ProviderError:
            self.close()
            raise
        except Exception as error:  # ONNX Runtime's errors have no root of their own
            self.close()
            raise ProviderError(
                "ONNX Runtime cannot capture CUDA graphs here; while it does, nothing else in this process "
                f"may use the GPU. Open with cuda_graphs=False to go without. It says: {error}"
            ) from error

    def bucket_of(self, batch: Packed) -> Bucket | None:
        """Where a batch fits; None where it is too large for all."""
        return smallest(self.buckets, batch)

    def run(self, batch: Packed, bucket: Bucket) -> npt.NDArray[np.float32]:
        """The embeddings of a batch, float32[texts, dim], by replaying a bucket's graph."""
        texts = len(batch.cumulative_lengths) - 1
        filled = fill(batch, bucket, self._contract.pad_id)
        rows: npt.NDArray[np.float32] = self._thread.submit(self._runs[bucket].run, filled._asdict()).result()
        return rows[:texts]

    def close(self) -> None:
        """Wait for the run in work, then free the graphs and their session."""
        self._thread.submit(self._runs.clear)
        self._thread.shutdown()

    def _capture(self, ort: Any, open_session: Callable[[], Any], device: tuple[str, int]) -> None:
        session = open_session()
        # Largest first: the memory it takes is enough for the others.
        for number, bucket in enumerate(reversed(self.buckets), start=1):
            feeds = fill(self._random(bucket, seed=0), bucket, self._contract.pad_id)._asdict()
            run = FixedRun(ort, session, feeds, (bucket.texts, self._contract.dim), device, number)
            run.run(feeds)
            self._runs[bucket] = run

    def _check(self, ordinary: Run) -> None:
        for bucket in self.buckets:
            batch = self._random(bucket, seed=1)
            least = _least_cosine(self.run(batch, bucket), ordinary(batch))
            if not least >= _AGREEMENT:
                raise ProviderError(
                    f"the CUDA graph of {bucket.tokens} tokens gives other embeddings than an ordinary run: "
                    f"cosine {least:.6f}, expected {_AGREEMENT} at least. Open with cuda_graphs=False"
                )

    def _random(self, bucket: Bucket, seed: int) -> Packed:
        """A batch of random ids in texts of random lengths that leaves room for one of filler."""
        rng, encoder = np.random.default_rng(seed), self._manifest.architecture
        tokens, texts = min(bucket.tokens - 1, self._contract.max_tokens), bucket.texts - 1
        cuts = np.sort(rng.choice(np.arange(1, tokens), texts - 1, replace=False))
        lengths = np.diff(cuts, prepend=0, append=tokens)
        ids = random_tokens(encoder.vocabulary, lengths, seed).ids
        batch = Batch(np.arange(texts), 0)
        return pack_for_cuda(ids, batch, self._contract.pad_id, counts_from_pad=encoder.counts_from_pad)


def _least_cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """The least of all rows; no number where a row is zero or holds none."""
    with np.errstate(all="ignore"):
        products = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(products.min())
