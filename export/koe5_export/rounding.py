"""Rounding weights to integers so that the products, not the weights, come out nearest.

Rounding each weight by itself ignores what it is multiplied with. Here rows are rounded one after the other,
and each takes over the error of the rows before it as far as their inputs move together. How far that is
stands in the covariance of calibration inputs, factored as H = U D U' with U unit upper triangular:
row k is rounded after adding U[j, k] times the error of every earlier row j. The covariance and not the Gram
matrix: what rounding does to the inputs' mean is a constant, and constants go into the bias (smooth.py).
Source of the method (GPTQ, in the form called LDLQ): https://arxiv.org/abs/2210.17323,
https://arxiv.org/abs/2307.13304.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from koe5_export.weights import Array, Rounded

DAMPING = 0.1
"""Share of the mean variance added to every channel: fewer tokens than channels leave the rest unknown."""
_ROWS = 128
"""Rows whose corrections from earlier ones are computed in one product."""
_COLUMNS = 256
"""Columns of a Cholesky factor that are computed in one product."""
_SMALLEST_SCALE = np.float32(1e-12)
_SHRINKS = tuple(np.float32(1 - 0.04 * step) for step in range(9))
"""Shares of the full range tried for each block at 4 bits: a smaller step is worth some clipping."""


@dataclass(frozen=True)
class Compensation:
    """What rounding must know of a linear's inputs."""

    order: npt.NDArray[np.intp]
    """Rows with the most varying input first: their errors are the ones worth compensating."""
    feedback: Array
    """float32[in, in]: the factor U, of the rows in that order."""

    @classmethod
    def of(cls, covariance: Array) -> Self:
        """Factor a covariance float32[in, in]."""
        order = np.argsort(-np.diag(covariance), kind="stable")
        # A Cholesky factor is lower triangular; that of the matrix turned by 180 degrees, turned, is upper.
        turned = covariance[np.ix_(order[::-1], order[::-1])]
        damping = max(DAMPING * float(turned.diagonal().mean(dtype=np.float64)), 1e-30)
        np.fill_diagonal(turned, turned.diagonal() + np.float32(damping))
        upper = _cholesky(turned)[::-1, ::-1]
        return cls(order, np.asarray(upper / upper.diagonal(), dtype=np.float32))


def _cholesky(matrix: Array) -> Array:
    """Factor a matrix in float32, or in float64 if rounding has made it indefinite."""
    try:
        return _factored(matrix)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.cholesky(matrix.astype(np.float64)))


def _factored(matrix: Array) -> Array:
    """Factor a matrix in blocks of columns: at 4,096 channels a third of the time of one LAPACK call."""
    lower = np.zeros_like(matrix)
    for start in range(0, len(matrix), _COLUMNS):
        end = min(start + _COLUMNS, len(matrix))
        panel = matrix[start:, start:end] - lower[start:, :start] @ lower[start:end, :start].T
        diagonal = np.linalg.cholesky(panel[: end - start])
        lower[start:end, start:end] = diagonal
        lower[end:, start:end] = panel[end - start :] @ np.linalg.inv(diagonal).T
    return lower


def round_columns(weight: Array, compensation: Compensation | None = None) -> Rounded:
    """Round a matrix to 8 bits, each column over its own range.

    Args:
        weight: float32[in, out].
        compensation: What its inputs are like; None rounds to nearest.
    """
    scale = _scale_of(np.abs(weight).max(axis=0, keepdims=True), 127)
    return _round(weight, scale, 127, compensation)


def round_blocks(weight: Array, bits: int, block: int, compensation: Compensation | None = None) -> Rounded:
    """Round a matrix, each block of rows in each column over its own range.

    Args:
        weight: float32[in, out].
        bits: 8 or 4.
        block: Rows of a block; divides `in`.
        compensation: As for `round_columns`.
    """
    largest = np.abs(weight).reshape(len(weight) // block, block, -1).max(axis=1)
    highest = 2 ** (bits - 1) - 1
    scale = _scale_of(largest, highest)
    if bits == 4:
        scale = _best_shrunk(weight, scale, highest)
    return _round(weight, scale, highest, compensation)


def _scale_of(largest: Array, highest: int) -> Array:
    return np.asarray(np.maximum(largest / np.float32(highest), _SMALLEST_SCALE), dtype=np.float32)


def _best_shrunk(weight: Array, scale: Array, highest: int) -> Array:
    """Each block's scale times the share that leaves the smallest squared error."""
    blocks = weight.reshape(len(scale), -1, weight.shape[1])
    best, least = scale, np.full(scale.shape, np.inf, np.float32)
    for shrink in _SHRINKS:
        tried = scale * shrink
        error = np.square(_nearest(blocks / tried[:, None], highest) * tried[:, None] - blocks).sum(axis=1)
        best, least = np.where(error < least, tried, best), np.minimum(error, least)
    return np.asarray(best)


def _round(weight: Array, scale: Array, highest: int, compensation: Compensation | None) -> Rounded:
    if compensation is None:
        blocks = weight.reshape(len(scale), -1, weight.shape[1])
        return Rounded(_nearest(blocks / scale[:, None], highest).reshape(weight.shape), scale)
    order = compensation.order
    block_of_row = order // (len(weight) // len(scale))
    integers = np.empty(weight.shape, dtype=np.int8)
    integers[order] = _round_in_order(weight[order], scale, block_of_row, highest, compensation.feedback)
    return Rounded(integers, scale)


def _round_in_order(
    rows: Array, scale: Array, block_of_row: npt.NDArray[np.intp], highest: int, feedback: Array
) -> npt.NDArray[np.int8]:
    """Round rows from the first to the last, each corrected by the errors before it."""
    integers = np.empty(rows.shape, dtype=np.int8)
    errors = np.zeros_like(rows)
    for start in range(0, len(rows), _ROWS):
        end = min(start + _ROWS, len(rows))
        corrected = rows[start:end] + feedback[:start, start:end].T @ errors[:start]
        for row in range(start, end):
            target = corrected[row - start] + feedback[start:row, row] @ errors[start:row]
            step = scale[block_of_row[row]]
            integers[row] = _nearest(target / step, highest)
            errors[row] = rows[row] - integers[row] * step
    return integers


def _nearest(values: Array, highest: int) -> npt.NDArray[np.int8]:
    out = np.rint(values)
    np.maximum(out, -highest, out=out)  # np.clip takes longer to start than for a row
    np.minimum(out, highest, out=out)
    return out.astype(np.int8)
