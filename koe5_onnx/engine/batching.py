"""Group texts into batches by length and build their padded or packed input arrays. NumPy only.

A row is one text, and a slot is one token of a row, padding included. A packed batch concatenates the tokens
of its rows without padding. In a padded batch, the padded length of a row depends only on its own length.
Otherwise an int8 embedding would depend on the other rows of the batch: another padded length changes the
last bits of a softmax, which changes the rounding of some values, and these differences grow from layer to
layer.

Example: lengths [30, 90, 31, 90] with a budget of 200 tokens result in two batches, longest first::

    Batch(rows=[1, 3], padded_length=90)    texts above 64 tokens are only batched with texts of equal length
    Batch(rows=[0, 2], padded_length=32)    shorter texts are padded to a multiple of 4
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]

ROUNDED_TOKENS = 64
"""Maximum length of rows that are padded to a multiple of 4, so that more rows can share a batch."""
_ROUNDED_TO = 4


@dataclass(frozen=True)
class Batch:
    """Rows of one batch."""

    rows: npt.NDArray[np.intp]
    """intp[n]: indices of the rows in the caller's list of token ids."""
    padded_length: int
    """Slots per row; not used if the batch is packed."""


class PackedCudaInputs(NamedTuple):
    """Inputs of the packed CUDA graph, in the order of the graph's inputs."""

    input_ids: Int64
    """int64[tokens]: ids of the concatenated rows."""
    position_ids: Int64
    """int64[tokens]: see `pack_cpu`."""
    text_of_token: Int64
    """int64[tokens]: index in the batch of the row that each token belongs to."""
    token_offset: Int32
    """int32[n, padded_length]: see `token_offsets`."""
    cumulative_lengths: Int32
    """int32[n + 1]: index of the first token of each row, and the number of all tokens."""


def padded_lengths(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the padded length of each text, int32[n], which depends only on its own length."""
    padded = -(-lengths // _ROUNDED_TO) * _ROUNDED_TO
    return np.where(lengths <= ROUNDED_TOKENS, padded, lengths)


def padded_batches(lengths: npt.NDArray[np.int32], max_batch_tokens: int) -> list[Batch]:
    """Group rows of equal padded length into batches of at most `max_batch_tokens` slots.

    Long rows come first, because the first batches should make the largest allocations. A row longer than the
    budget runs alone.

    Args:
        lengths: int32[n], tokens of each row.
        max_batch_tokens: Maximum slots per batch, at least 1.
    """
    padded = padded_lengths(lengths)
    order = np.argsort(-padded, kind="stable")
    starts = np.flatnonzero(np.diff(padded[order], prepend=-1))
    batches: list[Batch] = []
    for group in np.split(order, starts[1:]) if len(order) else []:
        length = int(padded[group[0]])
        rows = max(1, max_batch_tokens // max(1, length))
        batches.extend(Batch(group[start : start + rows], length) for start in range(0, len(group), rows))
    return batches


def packed_batches(lengths: npt.NDArray[np.int32], max_batch_tokens: int) -> list[Batch]:
    """Group rows into batches of at most `max_batch_tokens` tokens, longest rows first.

    A row longer than the budget runs alone.

    Args:
        lengths: int32[n], tokens of each row.
        max_batch_tokens: Maximum tokens per batch, at least 1.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order], dtype=np.int64)
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + max_batch_tokens, side="right")))
        batches.append(Batch(order[start:stop], 0))
        start = stop
    return batches


def pack_cpu(
    ids: Sequence[npt.NDArray[np.int32]], batch: Batch, pad_id: int, *, counts_from_pad: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Concatenate the rows of a batch.

    Args:
        ids: int32[length] per text of the call.
        batch: Selects the rows from `ids`.
        pad_id: Id of the pad token.
        counts_from_pad: True to number the tokens of a row from 1, and 0 for each pad token that occurs in
            the text itself (RoBERTa's position ids minus `pad_id`). False to number all tokens from 0.

    Returns:
        input_ids int64[tokens]; position_ids int64[tokens]; offsets int32[n + 1], the index of the first
        token of each row and the number of all tokens.
    """
    rows = [ids[row] for row in batch.rows]
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    input_ids = np.concatenate(rows).astype(np.int64)
    if counts_from_pad:
        return input_ids, _counted(input_ids != pad_id, offsets), offsets
    return input_ids, np.arange(len(input_ids)) - np.repeat(offsets[:-1], np.diff(offsets)), offsets


def pack_cuda(
    ids: Sequence[npt.NDArray[np.int32]], batch: Batch, pad_id: int, *, counts_from_pad: bool
) -> PackedCudaInputs:
    """Concatenate the rows like `pack_cpu`, with the additional inputs for attention and pooling on CUDA."""
    input_ids, position_ids, offsets = pack_cpu(ids, batch, pad_id, counts_from_pad=counts_from_pad)
    lengths = np.diff(offsets)
    text_of_token = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    return PackedCudaInputs(input_ids, position_ids, text_of_token, token_offsets(lengths), offsets)


def token_offsets(lengths: npt.NDArray[np.int32], padded_length: int | None = None) -> npt.NDArray[np.int32]:
    """Return the `token_offset` input of ONNX Runtime's PackedMultiHeadAttention.

    It lists the slots that the tokens would have if the rows were padded on the right, followed by the slots
    of the padding. Lengths [1, 2] result in [[0, 2], [3, 1]]: in two rows of two slots, the tokens are in
    slots 0, 2 and 3, and slot 1 is padding.

    Args:
        lengths: int32[n], tokens of each row, at least 1.
        padded_length: Slots per row; None uses the length of the longest row.

    Returns:
        int32[n, padded_length]: a permutation of 0 to n x padded_length - 1.
    """
    shape = (len(lengths), padded_length or int(lengths.max()))
    slots = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
    real = np.arange(shape[1]) < lengths[:, None]
    return np.concatenate([slots[real], slots[~real]]).reshape(shape)


def _counted(counts: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Number the True values of each row from 1; False values get 0."""
    total = np.cumsum(counts, dtype=np.int64)
    before = np.concatenate([[0], total])[offsets[:-1]]
    return np.asarray((total - np.repeat(before, np.diff(offsets))) * counts)


def pad(
    ids: Sequence[npt.NDArray[np.int32]], batch: Batch, pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Stack the rows of a batch with padding on the right.

    Returns:
        input_ids and attention_mask, both int64[n, padded_length]. The mask is 1 for tokens, 0 for padding.
    """
    shape = (len(batch.rows), batch.padded_length)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for number, row in enumerate(batch.rows):
        length = len(ids[row])
        input_ids[number, :length] = ids[row]
        attention_mask[number, :length] = 1
    return input_ids, attention_mask
