"""CUDA graphs for small batches: capture the packed graph once per bucket (a fixed shape), then replay it.

A forward pass of KoE5 for a query launches 279 kernels of a few microseconds, and launching them one by one
takes longer than running them. A replay launches all of them at once. It requires fixed shapes
(capture_shapes.py) and fixed addresses (io_binding.py).

ONNX Runtime binds a CUDA graph to the thread that captured it. Other batches of the same session may also get
memory to which the CUDA graph writes. CUDA graphs therefore use a separate thread and session.
Source: cuda_execution_provider.h and cuda_graph.cc of https://github.com/microsoft/onnxruntime
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx.artifact import Manifest
from koe5_onnx.engine.batching import Batch, PackedCudaInputs, pack_cuda
from koe5_onnx.engine.cuda.capture_shapes import Bucket, buckets_up_to, fill, smallest
from koe5_onnx.engine.cuda.io_binding import FixedRun
from koe5_onnx.errors import ProviderError
from koe5_onnx.text.tokenizer import random_tokens

_AGREEMENT = 0.999
"""Minimum cosine between the embeddings of a replay and of a normal run, which only sum in another order."""

Run = Callable[[PackedCudaInputs], npt.NDArray[np.float32]]


class CapturedGraphs:
    """Captured CUDA graphs of one artifact on one GPU. Thread-safe; replays run one at a time.

    After all graphs are captured, each one is checked with other token ids: a replay must return the
    embeddings of a normal run, up to rounding.

    Args:
        ort: The onnxruntime module.
        open_session: Function that opens the packed graph in an ONNX Runtime session for capturing.
        ordinary: Function that runs a batch without a captured graph.
        manifest: Manifest of the artifact.
        device: Device type and index, such as ("cuda", 0).

    Raises:
        ProviderError: A graph cannot be captured, or its replay returns different embeddings.
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
        except Exception as error:  # ONNX Runtime's errors have no common base class
            self.close()
            raise ProviderError(
                "ONNX Runtime cannot capture CUDA graphs. Make sure that nothing else in this process uses "
                "the GPU meanwhile, or open the artifact with cuda_graphs=False. "
                f"ONNX Runtime reports: {error}"
            ) from error

    def bucket_of(self, batch: PackedCudaInputs) -> Bucket | None:
        """Return the smallest bucket into which a batch fits; None if it is larger than all buckets."""
        return smallest(self.buckets, batch)

    def run(self, batch: PackedCudaInputs, bucket: Bucket) -> npt.NDArray[np.float32]:
        """Embed a batch by replaying the graph of a bucket: float32[n, dim]."""
        texts = len(batch.cumulative_lengths) - 1
        filled = fill(batch, bucket, self._contract.pad_id)
        rows: npt.NDArray[np.float32] = self._thread.submit(self._runs[bucket].run, filled._asdict()).result()
        return rows[:texts]

    def close(self) -> None:
        """Wait for running replays, then release the graphs and their session."""
        self._thread.submit(self._runs.clear)
        self._thread.shutdown()

    def _capture(self, ort: Any, open_session: Callable[[], Any], device: tuple[str, int]) -> None:
        session = open_session()
        # Capture the largest graph first, so that the others reuse its memory.
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
                    f"the CUDA graph for {bucket.tokens} tokens returns different embeddings than a normal "
                    f"run: cosine {least:.6f}, expected at least {_AGREEMENT}. Open the artifact with "
                    "cuda_graphs=False"
                )

    def _random(self, bucket: Bucket, seed: int) -> PackedCudaInputs:
        """Return a batch of random texts that fits into the bucket with one filler text."""
        rng, encoder = np.random.default_rng(seed), self._manifest.architecture
        tokens, texts = min(bucket.tokens - 1, self._contract.max_tokens), bucket.texts - 1
        cuts = np.sort(rng.choice(np.arange(1, tokens), texts - 1, replace=False))
        lengths = np.diff(cuts, prepend=0, append=tokens)
        ids = random_tokens(encoder.vocabulary, lengths, seed).ids
        batch = Batch(np.arange(texts), 0)
        return pack_cuda(ids, batch, self._contract.pad_id, counts_from_pad=encoder.counts_from_pad)


def _least_cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Return the lowest cosine between corresponding rows; NaN if a row is zero or contains NaN."""
    with np.errstate(all="ignore"):
        products = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(products.min())
