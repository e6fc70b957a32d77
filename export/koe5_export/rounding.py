"""Round weights to integers such that the error of products, not of weights, is small.

Rows are rounded one after the other, and each row compensates errors of earlier rows to the extent that their
inputs are correlated. The covariance of calibration inputs is factored as H = U D U' with a unit upper
triangular U, and row k is rounded after adding U[j, k] times the error of each earlier row j. The covariance
is used instead of the Gram matrix because the error caused by the inputs' mean is constant and is corrected
in the bias (smooth.py).
Source of the method (GPTQ in its LDLQ form): https://arxiv.org/abs/2210.17323,
https://arxiv.org/abs/2307.13304.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from koe5_export.weights import Array, Rounded

DAMPING = 0.1
"""Share of the mean variance that is added to each channel's variance. Without it, the covariance is singular
if there are fewer tokens than channels."""
_ROWS = 128
"""Number of rows whose corrections are computed in one product."""
_COLUMNS = 256
"""Number of columns of a Cholesky factor that are computed in one product."""
_SMALLEST_SCALE = np.float32(1e-12)
_SHRINKS = tuple(np.float32(1 - 0.04 * step) for step in range(9))
"""Fractions of the full range that are tried for each 4-bit block. A smaller range clips large values, but
rounds the others more finely."""


@dataclass(frozen=True)
class Compensation:
    """Factored covariance of a linear layer's inputs."""

    order: npt.NDArray[np.intp]
    """Order in which rows are rounded: inputs with the largest variance first, because their errors matter
    most."""
    feedback: Array
    """Factor U for the rows in this order, float32[in, in]."""

    @classmethod
    def of(cls, covariance: Array) -> Self:
        """Factor a covariance float32[in, in]."""
        order = np.argsort(-np.diag(covariance), kind="stable")
        # Reversing the rows and columns before and after the Cholesky factorization gives an upper triangular
        # factor instead of a lower one.
        turned = covariance[np.ix_(order[::-1], order[::-1])]
        damping = max(DAMPING * float(turned.diagonal().mean(dtype=np.float64)), 1e-30)
        np.fill_diagonal(turned, turned.diagonal() + np.float32(damping))
        upper = _cholesky(turned)[::-1, ::-1]
        return cls(order, np.asarray(upper / upper.diagonal(), dtype=np.float32))


def _cholesky(matrix: Array) -> Array:
    """Factor a matrix in float32, or in float64 if rounding errors make it indefinite."""
    try:
        return _factored(matrix)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.cholesky(matrix.astype(np.float64)))


def _factored(matrix: Array) -> Array:
    """Factor a matrix in blocks of columns, which takes a third of LAPACK's time for 4,096 channels."""
    lower = np.zeros_like(matrix)
    for start in range(0, len(matrix), _COLUMNS):
        end = min(start + _COLUMNS, len(matrix))
        panel = matrix[start:, start:end] - lower[start:, :start] @ lower[start:end, :start].T
        diagonal = np.linalg.cholesky(panel[: end - start])
        lower[start:end, start:end] = diagonal
        lower[end:, start:end] = panel[end - start :] @ np.linalg.inv(diagonal).T
    return lower


def round_columns(weight: Array, compensation: Compensation | None = None) -> Rounded:
    """Round a matrix to 8 bits with one scale per column.

    Args:
        weight: float32[in, out].
        compensation: Factored covariance of its inputs; None rounds to nearest.
    """
    scale = _scale_of(np.abs(weight).max(axis=0, keepdims=True), 127)
    return _round(weight, scale, 127, compensation)


def round_blocks(weight: Array, bits: int, block: int, compensation: Compensation | None = None) -> Rounded:
    """Round a matrix with one scale for each block of rows in each column.

    Args:
        weight: float32[in, out].
        bits: 8 or 4.
        block: Number of rows per block; must divide `in`.
        compensation: See `round_columns`.
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
    """Return each block's scale multiplied by the fraction in `_SHRINKS` with the smallest squared error."""
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
    """Round rows in order, each corrected by the errors of earlier rows."""
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
    np.maximum(out, -highest, out=out)  # for one row, the call overhead of np.clip dominates
    np.minimum(out, highest, out=out)
    return out.astype(np.int8)
