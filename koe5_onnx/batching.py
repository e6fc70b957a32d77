"""Lengths to batches, and rows to padded arrays. Pure numpy, no state.

Worked example: lengths [3, 9, 3, 8] and a budget of 20 tokens give two batches, longest first::

    Batch(rows=[1, 3], width=9)     9 + 8 tokens in 18 places
    Batch(rows=[0, 2], width=3)     equally long: no padding, so no mask
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Batch:
    """Rows that run together."""

    rows: npt.NDArray[np.intp]
    """intp[n]: positions in the caller's list."""
    width: int
    """Padded length in tokens: the longest of the rows."""


def plan(lengths: npt.NDArray[np.int32], max_batch_tokens: int) -> list[Batch]:
    """Group rows of nearly equal length so that no batch has more than `max_batch_tokens` places.

    Longest first, so that the largest allocation comes first and the short rest fills the end. A row
    longer than the budget runs alone.

    Args:
        lengths: int32[n], tokens of each row.
        max_batch_tokens: Bound on rows x width of a batch, at least 1.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        width = int(lengths[order[start]])
        rows = max(1, max_batch_tokens // max(1, width))
        batches.append(Batch(order[start : start + rows], width))
        start += rows
    return batches


def pad(
    ids: Sequence[npt.NDArray[np.int32]], batch: Batch, pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lay the rows of a batch side by side, padded on the right.

    Returns:
        input_ids and attention_mask, both int64[n, width]; the mask is 1 on tokens and 0 on padding.
    """
    shape = (len(batch.rows), batch.width)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for place, row in enumerate(batch.rows):
        length = len(ids[row])
        input_ids[place, :length] = ids[row]
        attention_mask[place, :length] = 1
    return input_ids, attention_mask
