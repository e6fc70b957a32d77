"""Pad small batches to a few fixed shapes ("buckets"), with one captured CUDA graph per shape. NumPy only.

Filler texts of pad tokens fill a batch up to the shape of a bucket. They do not affect other texts, because
tokens only attend to tokens of the same text.

Example: in the bucket of 32 tokens and 4 texts, one text of 5 tokens runs as lengths [5, 1, 1, 25]. Its
embedding is the first row of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from koe5_onnx.engine.batching import Int32, PackedCudaInputs, token_offsets

_TOKENS = (16, 32, 64, 128, 192, 256, 384)
"""Sizes in tokens of all buckets except the largest one."""
_MOST_TEXTS, _TOKENS_A_TEXT = 16, 8
_STEP = 16
"""Sizes of buckets are multiples of this number of tokens, since GPUs multiply matrices in tiles."""


@dataclass(frozen=True)
class Bucket:
    """Number of tokens and texts of a captured graph. At least one of the texts is filler."""

    tokens: int
    texts: int

    def holds(self, tokens: int, texts: int) -> bool:
        """Return True if a batch of `tokens` and `texts` fits, with at least one token per filler text."""
        fillers = self.texts - texts
        return fillers >= 1 and tokens + fillers <= self.tokens


def buckets_up_to(max_tokens: int) -> list[Bucket]:
    """Return the buckets, smallest first. The largest one holds a text of `max_tokens` tokens."""
    largest = -(-(max_tokens + _MOST_TEXTS) // _STEP) * _STEP
    sizes = [*(tokens for tokens in _TOKENS if tokens < largest), largest]
    return [Bucket(tokens, min(_MOST_TEXTS, tokens // _TOKENS_A_TEXT)) for tokens in sizes]


def smallest(buckets: Sequence[Bucket], batch: PackedCudaInputs) -> Bucket | None:
    """Return the first of `buckets` that holds a batch; None if the batch is too large."""
    tokens, texts = len(batch.input_ids), len(batch.cumulative_lengths) - 1
    return next((bucket for bucket in buckets if bucket.holds(tokens, texts)), None)


def fill(batch: PackedCudaInputs, bucket: Bucket, pad_id: int) -> PackedCudaInputs:
    """Append filler texts, so that the batch has exactly the bucket's tokens and texts.

    Args:
        batch: Batch that fits into the bucket.
        bucket: Shape of the result.
        pad_id: Id of the pad token.
    """
    real = np.diff(batch.cumulative_lengths)
    lengths = np.concatenate([real, _filler(bucket, len(batch.input_ids), len(real))])
    spare = bucket.tokens - len(batch.input_ids)
    return PackedCudaInputs(
        np.pad(batch.input_ids, (0, spare), constant_values=pad_id),
        np.pad(batch.position_ids, (0, spare)),
        np.repeat(np.arange(bucket.texts, dtype=np.int64), lengths),
        token_offsets(lengths, bucket.tokens),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
    )


def _filler(bucket: Bucket, tokens: int, texts: int) -> Int32:
    """Return the lengths of the filler texts, int32[n]: 1, except for the last one, which fills the rest."""
    lengths = np.ones(bucket.texts - texts, dtype=np.int32)
    lengths[-1] += bucket.tokens - tokens - len(lengths)
    return lengths
