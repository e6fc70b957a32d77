"""Plan batches from text lengths, and lay rows out as arrays, padded or packed. Pure NumPy.

Packed batches hold the tokens of all texts end to end, without padding.

In padded batches the padded length of a text depends on its own length only. In int8 this is what makes an
embedding the same alone and in any batch: another padded length changes the last bits of a softmax, these
decide some roundings, and each rounding changes more of them in the next layer.

Worked example: lengths [30, 90, 31, 90] and a budget of 200 tokens give two batches, longest first::

    Batch(rows=[1, 3], padded_length=90)    long texts share a batch only if they are equally long: no padding
    Batch(rows=[0, 2], padded_length=32)    short texts are padded to a multiple of 4
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
"""Texts up to this length are padded to a multiple of 4, so that more of them share a batch."""
_ROUNDED_TO = 4


@dataclass(frozen=True)
class Batch:
    """Rows that run together."""

    rows: npt.NDArray[np.intp]
    """intp[n]: positions in the caller's list."""
    padded_length: int
    """Length of a row in tokens, padding included; 0 if rows are packed."""


class Packed(NamedTuple):
    """A batch as CUDA's packed graph takes it: its inputs by name and in their order."""

    input_ids: Int64
    """int64[tokens], the texts end to end."""
    position_ids: Int64
    """int64[tokens]: see `pack_for_cuda`."""
    text_of_token: Int64
    """int64[tokens]: the row that each token belongs to."""
    token_offset: Int32
    """int32[n, longest]: see `token_offsets`."""
    cumulative_lengths: Int32
    """int32[n + 1]: where each text begins, and the end of the last."""


def padded_lengths(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Padded length of each text, int32[n]: a function of its own length."""
    padded = -(-lengths // _ROUNDED_TO) * _ROUNDED_TO
    return np.where(lengths <= ROUNDED_TOKENS, padded, lengths)


def plan(lengths: npt.NDArray[np.int32], max_batch_tokens: int) -> list[Batch]:
    """Group rows of equal padded length so that no batch has more than `max_batch_tokens` slots.

    The longest come first, so that the largest allocation does. A row longer than the budget runs alone.

    Args:
        lengths: int32[n], tokens of each row.
        max_batch_tokens: Bound on rows x padded length of a batch, at least 1.
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


def plan_packed(lengths: npt.NDArray[np.int32], max_batch_tokens: int) -> list[Batch]:
    """Group rows so that no batch has more than `max_batch_tokens` tokens, longest first.

    A row longer than the budget runs alone.

    Args:
        lengths: int32[n], tokens of each row.
        max_batch_tokens: Bound on the tokens of a batch, at least 1.
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


def pack(
    ids: Sequence[npt.NDArray[np.int32]], batch: Batch
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Lay the rows of a batch end to end.

    Returns:
        input_ids int64[tokens]; position_ids int64[tokens], each token's position in its own row from 0;
        offsets int32[n + 1], where each row begins, and the end of the last.
    """
    rows = [ids[row] for row in batch.rows]
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    position_ids = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], np.diff(offsets))
    return np.concatenate(rows).astype(np.int64), position_ids, offsets


def pack_for_cuda(
    ids: Sequence[npt.NDArray[np.int32]], batch: Batch, pad_id: int, *, counts_from_pad: bool
) -> Packed:
    """`pack` with what CUDA's packed attention and the pooling behind it need.

    Args:
        ids: Of all rows.
        batch: Which of them.
        pad_id: Id of padding.
        counts_from_pad: Whether positions count the tokens that are not pad tokens, from 1, with 0 for a pad
            token that was typed in a text; otherwise they count all tokens from 0.
    """
    input_ids, from_zero, offsets = pack(ids, batch)
    lengths = np.diff(offsets)
    positions = _counted(input_ids != pad_id, offsets, lengths) if counts_from_pad else from_zero
    text_of_token = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    return Packed(input_ids, positions, text_of_token, token_offsets(lengths), offsets)


def token_offsets(lengths: npt.NDArray[np.int32], padded_length: int | None = None) -> npt.NDArray[np.int32]:
    """Return where packed tokens would be if their texts were padded on the right, then the slots of padding.

    This is an input of ONNX Runtime's PackedMultiHeadAttention. Lengths [1, 2] give [[0, 2], [3, 1]]: the
    tokens are in slots 0, 2 and 3 of two rows of two slots, the padding is in slot 1.

    Args:
        lengths: int32[n], at least 1 each.
        padded_length: Slots of a text; None takes the longest length.

    Returns:
        int32[n, padded_length], each number from 0 to n x padded_length - 1 once.
    """
    shape = (len(lengths), padded_length or int(lengths.max()))
    slots = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
    real = np.arange(shape[1]) < lengths[:, None]
    return np.concatenate([slots[real], slots[~real]]).reshape(shape)


def _counted(
    counts: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Number of tokens that count up to each, in its own text; 0 for those that do not count."""
    total = np.cumsum(counts, dtype=np.int64)
    before = np.concatenate([[0], total])[offsets[:-1]]
    return np.asarray((total - np.repeat(before, lengths)) * counts)


def pad(
    ids: Sequence[npt.NDArray[np.int32]], batch: Batch, pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lay the rows of a batch side by side, padded on the right.

    Returns:
        input_ids and attention_mask, both int64[n, padded_length]; the mask is 1 on tokens and 0 on padding.
    """
    shape = (len(batch.rows), batch.padded_length)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for number, row in enumerate(batch.rows):
        length = len(ids[row])
        input_ids[number, :length] = ids[row]
        attention_mask[number, :length] = 1
    return input_ids, attention_mask
