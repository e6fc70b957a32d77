"""Filler pads any small batch to the exact size of its bucket, without changing the batch's own texts."""

from __future__ import annotations

import numpy as np
import pytest

from koe5_onnx.engine.batching import Batch, PackedCudaInputs, pack_cuda, token_offsets
from koe5_onnx.engine.cuda.capture_shapes import Bucket, buckets_up_to, fill, smallest

PAD = 1


def batch_of(lengths, counts_from_pad=True) -> PackedCudaInputs:
    ids = [np.arange(4, 4 + length, dtype=np.int32) for length in lengths]
    return pack_cuda(ids, Batch(np.arange(len(ids)), 0), PAD, counts_from_pad=counts_from_pad)


@pytest.mark.parametrize("max_tokens", [1, 8, 100, 128, 256, 512, 8192])
def test_one_text_of_any_length_has_a_bucket(max_tokens):
    buckets = buckets_up_to(max_tokens)
    assert [one.tokens for one in buckets] == sorted({one.tokens for one in buckets})
    assert all(one.tokens % 16 == 0 and one.texts >= 2 for one in buckets)
    for tokens in {1, max_tokens // 2 or 1, max_tokens}:
        assert any(one.holds(tokens, 1) for one in buckets)


def test_the_smallest_that_holds_it():
    buckets = buckets_up_to(512)
    assert buckets[0] == Bucket(16, 2)
    assert buckets[-1] == Bucket(528, 16)
    assert smallest(buckets, batch_of([15])) == Bucket(16, 2)
    assert smallest(buckets, batch_of([16])) == Bucket(32, 4)
    assert smallest(buckets, batch_of([3, 3])) == Bucket(32, 4)
    assert smallest(buckets, batch_of([3] * 15)) == Bucket(128, 16)
    assert smallest(buckets, batch_of([512])) == buckets[-1]
    assert smallest(buckets, batch_of([512, 2])) == buckets[-1]
    assert smallest(buckets, batch_of([3] * 16)) is None
    assert smallest(buckets, batch_of([512, 3])) is None


@pytest.mark.parametrize("seed", range(30))
def test_any_batch_filled_up(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, rng.integers(1, 13))
    batch = batch_of(lengths, counts_from_pad=bool(seed % 2))
    bucket = smallest(buckets_up_to(512), batch)
    assert bucket is not None
    filled = fill(batch, bucket, PAD)
    tokens, texts = len(batch.input_ids), len(lengths)
    for name in ("input_ids", "position_ids", "text_of_token"):
        found, given = getattr(filled, name), getattr(batch, name)
        assert (found.dtype, found.shape) == (given.dtype, (bucket.tokens,))
        np.testing.assert_array_equal(found[:tokens], given)
    assert (filled.input_ids[tokens:] == PAD).all()
    # Position ids of filler must be valid for any amount of filler.
    assert (filled.position_ids[tokens:] == 0).all()
    ends = filled.cumulative_lengths
    assert (ends.dtype, ends.shape, ends[-1]) == (np.int32, (bucket.texts + 1,), bucket.tokens)
    np.testing.assert_array_equal(ends[: texts + 1], batch.cumulative_lengths)
    assert (np.diff(ends) >= 1).all()
    np.testing.assert_array_equal(filled.text_of_token, np.repeat(np.arange(bucket.texts), np.diff(ends)))
    assert (filled.token_offset.dtype, filled.token_offset.shape) == (np.int32, (bucket.texts, bucket.tokens))


def test_the_shape_is_the_buckets_alone():
    bucket = Bucket(64, 8)
    shapes = {
        tuple((one.shape, one.dtype) for one in fill(batch_of(lengths), bucket, PAD))
        for lengths in ([1], [40], [9] * 7, [57, 1, 1, 1, 1, 1, 1])
    }
    assert len(shapes) == 1


def test_wider_token_offsets():
    lengths = np.array([1, 2], np.int32)
    assert token_offsets(lengths).tolist() == [[0, 2], [3, 1]]
    assert token_offsets(lengths, 3).tolist() == [[0, 3, 4], [1, 2, 5]]
