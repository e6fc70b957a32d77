"""Small batches brought to a few fixed shapes, so that a CUDA graph is captured once for each. Pure numpy.

A bucket is filled up with texts of pad tokens. They cost the GPU next to nothing and change no other text:
each token attends to its own text only.

Worked example: one text of 5 tokens in the bucket of 16 tokens and 4 texts runs as lengths [5, 1, 1, 9], and
the first row of the result is its embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from koe5_onnx.engine.batching import Int32, Packed, token_offsets

_TOKENS = (16, 32, 64, 128, 192, 256, 384)
"""Up to about 128 tokens a large encoder takes as long as for one: it waits for its weights."""
_MOST_TEXTS, _TOKENS_A_TEXT = 16, 8
_STEP = 16
"""GPUs multiply whole tiles."""


@dataclass(frozen=True)
class Bucket:
    """A shape: so many tokens in so many texts, of which one at least is filler."""

    tokens: int
    texts: int

    def holds(self, tokens: int, texts: int) -> bool:
        """Whether a batch fits, with a token for each text of filler."""
        fillers = self.texts - texts
        return fillers >= 1 and tokens + fillers <= self.tokens


def buckets_up_to(max_tokens: int) -> list[Bucket]:
    """Buckets for batches up to one text of the token limit, smallest first."""
    largest = -(-(max_tokens + _MOST_TEXTS) // _STEP) * _STEP
    sizes = [*(tokens for tokens in _TOKENS if tokens < largest), largest]
    return [Bucket(tokens, min(_MOST_TEXTS, tokens // _TOKENS_A_TEXT)) for tokens in sizes]


def smallest(buckets: Sequence[Bucket], batch: Packed) -> Bucket | None:
    """The first of `buckets` that holds a batch; None where none does."""
    tokens, texts = len(batch.input_ids), len(batch.cumulative_lengths) - 1
    return next((bucket for bucket in buckets if bucket.holds(tokens, texts)), None)


def fill(batch: Packed, bucket: Bucket, pad_id: int) -> Packed:
    """The batch with texts of pad tokens behind it: exactly the bucket's tokens and texts.

    Args:
        batch: One that the bucket holds.
        bucket: The shape.
        pad_id: Id of padding.
    """
    real = np.diff(batch.cumulative_lengths)
    lengths = np.concatenate([real, _filler(bucket, len(batch.input_ids), len(real))])
    spare = bucket.tokens - len(batch.input_ids)
    return Packed(
        np.pad(batch.input_ids, (0, spare), constant_values=pad_id),
        np.pad(batch.position_ids, (0, spare)),
        np.repeat(np.arange(bucket.texts, dtype=np.int64), lengths),
        token_offsets(lengths, bucket.tokens),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
    )


def _filler(bucket: Bucket, tokens: int, texts: int) -> Int32:
    """Lengths of the filler, int32[n]: one token each, and the last takes the rest."""
    lengths = np.ones(bucket.texts - texts, dtype=np.int32)
    lengths[-1] += bucket.tokens - tokens - len(lengths)
    return lengths
