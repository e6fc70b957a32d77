"""Batches contain every row once and, unless they have a single row, stay within the token budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from koe5_onnx.engine.batching import (
    ROUNDED_TOKENS,
    Batch,
    pack_cpu,
    pack_cuda,
    packed_batches,
    pad,
    padded_batches,
    padded_lengths,
    token_offsets,
)


def random_lengths(seed: int) -> tuple[np.ndarray, int]:
    """Return the lengths of fewer than 300 random texts, and a random budget."""
    rng = np.random.default_rng(seed)
    count, longest = int(rng.integers(0, 300)), int(rng.choice([3, 70, 512, 5000]))
    return rng.integers(2, longest + 1, count).astype(np.int32), int(rng.choice([1, 64, 512, 100_000]))


@pytest.mark.parametrize("seed", range(40))
def test_any_padded_batches(seed):
    lengths, budget = random_lengths(seed)
    batches = padded_batches(lengths, budget)
    rows = np.concatenate([batch.rows for batch in batches]) if batches else np.array([], np.intp)
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(lengths)))
    for batch in batches:
        assert len(batch.rows) == 1 or len(batch.rows) * batch.padded_length <= budget
        np.testing.assert_array_equal(padded_lengths(lengths[batch.rows]), batch.padded_length)
    widths = [batch.padded_length for batch in batches]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("seed", range(10))
def test_padded_batches_are_full(seed):
    """One more row would exceed the budget in all but the last batch of a padded length."""
    lengths, budget = random_lengths(seed)
    batches = padded_batches(lengths, budget)
    for batch, following in itertools.pairwise(batches):
        if batch.padded_length == following.padded_length:
            assert (len(batch.rows) + 1) * batch.padded_length > budget


def test_width_is_a_function_of_the_texts_own_length():
    lengths = np.arange(1, 600, dtype=np.int32)
    widths = padded_lengths(lengths)
    assert (widths >= lengths).all()
    assert (widths - lengths < 4).all()
    np.testing.assert_array_equal(widths[ROUNDED_TOKENS:], lengths[ROUNDED_TOKENS:])
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(lengths))
        np.testing.assert_array_equal(padded_lengths(lengths[order]), widths[order])


def test_no_rows():
    assert padded_batches(np.array([], dtype=np.int32), 512) == []


def test_one_giant_among_small_runs_alone_and_first():
    lengths = np.array([5, 6, 5000, 7, 8], dtype=np.int32)
    first, second = padded_batches(lengths, 512)
    assert (first.rows.tolist(), first.padded_length) == ([2], 5000)
    assert (sorted(second.rows.tolist()), second.padded_length) == ([0, 1, 3, 4], 8)


def test_the_worked_example_of_the_docstring():
    batches = padded_batches(np.array([30, 90, 31, 90], dtype=np.int32), 200)
    assert [(batch.rows.tolist(), batch.padded_length) for batch in batches] == [([1, 3], 90), ([0, 2], 32)]


def test_pad_puts_the_padding_on_the_right():
    ids = [np.array(row, dtype=np.int32) for row in ([0, 9, 2], [0, 7, 8, 2], [0, 2])]
    input_ids, attention_mask = pad(ids, Batch(np.array([2, 1]), padded_length=5), pad_id=1)
    assert input_ids.dtype == attention_mask.dtype == np.int64
    np.testing.assert_array_equal(input_ids, [[0, 2, 1, 1, 1], [0, 7, 8, 2, 1]])
    np.testing.assert_array_equal(attention_mask, [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])


@pytest.mark.parametrize("seed", range(20))
def test_any_packed_batches(seed):
    lengths, budget = random_lengths(seed)
    batches = packed_batches(lengths, budget)
    rows = np.concatenate([batch.rows for batch in batches]) if batches else np.array([], np.intp)
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(lengths)))
    assert (np.diff(lengths[rows]) <= 0).all()
    for batch, following in itertools.zip_longest(batches, batches[1:]):
        tokens = lengths[batch.rows].sum()
        assert len(batch.rows) == 1 or tokens <= budget
        assert following is None or tokens + lengths[following.rows[0]] > budget


def test_packed_rows_lie_end_to_end():
    ids = [np.array(row, np.int32) for row in ([7, 8], [], [1], [4, 5, 6])]
    batch = Batch(np.array([3, 0, 2]), 0)
    input_ids, position_ids, offsets = pack_cpu(ids, batch, 0, counts_from_pad=False)
    assert [array.dtype for array in (input_ids, position_ids, offsets)] == [np.int64, np.int64, np.int32]
    np.testing.assert_array_equal(input_ids, [4, 5, 6, 7, 8, 1])
    np.testing.assert_array_equal(position_ids, [0, 1, 2, 0, 1, 0])
    np.testing.assert_array_equal(offsets, [0, 3, 5, 6])


def test_token_offsets_by_hand():
    assert token_offsets(np.array([1, 2], np.int32)).tolist() == [[0, 2], [3, 1]]
    assert token_offsets(np.array([2, 2], np.int32)).tolist() == [[0, 1], [2, 3]]
    assert token_offsets(np.array([3], np.int32)).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("seed", range(20))
def test_token_offsets_put_each_token_where_padding_would(seed):
    """Packed tokens written to these offsets equal the result of `pad`. The other slots are padding."""
    lengths, _ = random_lengths(seed)
    lengths = np.minimum(lengths[:20], 300) if len(lengths) else np.array([7], np.int32)
    ids = [np.arange(1, length + 1, dtype=np.int32) + 1000 * row for row, length in enumerate(lengths)]
    batch = Batch(np.arange(len(ids)), int(lengths.max()))
    tokens, _, offsets = pack_cpu(ids, batch, 0, counts_from_pad=False)
    found = token_offsets(lengths)
    assert (found.dtype, found.shape) == (np.int32, (len(ids), lengths.max()))
    assert sorted(found.ravel().tolist()) == list(range(found.size))
    padded = np.zeros(found.size, np.int64)
    padded[found.ravel()[: offsets[-1]]] = tokens
    expected, mask = pad(ids, batch, 0)
    np.testing.assert_array_equal(padded.reshape(found.shape), expected)
    assert not mask.ravel()[found.ravel()[offsets[-1] :]].any()


def test_positions_of_packed_texts():
    """Tokens are numbered from 1 with `counts_from_pad`, with 0 for a pad token in the text, else from 0."""
    ids = [np.array([0, 7, 1, 8, 2], np.int32), np.array([0, 2], np.int32), np.array([1], np.int32)]
    batch = Batch(np.array([0, 2, 1]), 0)
    counted = pack_cuda(ids, batch, 1, counts_from_pad=True)
    assert counted[0].tolist() == [0, 7, 1, 8, 2, 1, 0, 2]
    assert counted[1].tolist() == [1, 2, 0, 3, 4, 0, 1, 2]
    assert counted[2].tolist() == [0, 0, 0, 0, 0, 1, 2, 2]
    assert counted[4].tolist() == [0, 5, 6, 8]
    assert [array.dtype for array in counted] == [np.int64] * 3 + [np.int32] * 2
    from_zero = pack_cuda(ids, batch, 1, counts_from_pad=False)[1]
    assert from_zero.tolist() == [0, 1, 2, 3, 4, 0, 0, 1]
