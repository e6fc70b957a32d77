"""Round a weight to integers such that the error of inputs @ weight, not of the weight, is small.

The rows of the weight, one per input channel, are rounded one after the other. Each row compensates errors of
earlier rows as far as the input channels are correlated. The covariance H of the inputs on calibration texts
is factored as H = U D U' with a unit upper triangular U. Before row k is rounded, U[j, k] times the error of
each earlier row j is added to it. H is the covariance, not the Gram matrix, because an error caused by the
mean of the inputs is constant, and smooth.py corrects it in the bias.
Source of the method (GPTQ in its LDLQ form): https://arxiv.org/abs/2210.17323,
https://arxiv.org/abs/2307.13304
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from koe5_export.weights import Array, Rounded

DAMPING = 0.1
"""Share of the mean variance of all channels that is added to the variance of each. Otherwise, the covariance
would be singular if there are fewer tokens than channels."""
_ROWS = 128
"""Number of rows for which the corrections by earlier rows are computed in one product."""
_COLUMNS = 256
"""Number of columns of a Cholesky factor that are computed in one product."""
_SMALLEST_SCALE = np.float32(1e-12)
_SHRINKS = tuple(np.float32(1 - 0.04 * step) for step in range(9))
"""Factors that are tried for the scale of each 4-bit block. A smaller scale clips large values, but rounds
the others more finely."""


@dataclass(frozen=True)
class Compensation:
    """Factored covariance of a linear layer's inputs."""

    order: npt.NDArray[np.intp]
    """intp[in]: order in which rows are rounded. Rows whose inputs have the largest variance come first:
    their errors matter most, and later rows can compensate them."""
    feedback: Array
    """float32[in, in]: factor U for the rows in this order."""

    @classmethod
    def of(cls, covariance: Array) -> Self:
        """Factor a covariance, float32[in, in]."""
        order = np.argsort(-np.diag(covariance), kind="stable")
        # The Cholesky factor is lower triangular. Reversing rows and columns before and after the
        # factorization gives an upper triangular factor.
        turned = covariance[np.ix_(order[::-1], order[::-1])]
        damping = max(DAMPING * float(turned.diagonal().mean(dtype=np.float64)), 1e-30)
        np.fill_diagonal(turned, turned.diagonal() + np.float32(damping))
        upper = _cholesky(turned)[::-1, ::-1]
        return cls(order, np.asarray(upper / upper.diagonal(), dtype=np.float32))


def _cholesky(matrix: Array) -> Array:
    """Return the lower Cholesky factor; compute it in float64 if rounding makes `matrix` indefinite."""
    try:
        return _factored(matrix)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.cholesky(matrix.astype(np.float64)))


def _factored(matrix: Array) -> Array:
    """Compute the Cholesky factor in blocks of columns, in a third of LAPACK's time for 4,096 channels."""
    lower = np.zeros_like(matrix)
    for start in range(0, len(matrix), _COLUMNS):
        end = min(start + _COLUMNS, len(matrix))
        panel = matrix[start:, start:end] - lower[start:, :start] @ lower[start:end, :start].T
        diagonal = np.linalg.cholesky(panel[: end - start])
        lower[start:end, start:end] = diagonal
        lower[end:, start:end] = panel[end - start :] @ np.linalg.inv(diagonal).T
    return lower


def round_columns(weight: Array, compensation: Compensation | None = None) -> Rounded:
    """Round a weight to 8 bits, with one scale per column.

    Args:
        weight: float32[in, out].
        compensation: Factored covariance of the inputs; None rounds each value to the nearest integer.
    """
    scale = _scale_of(np.abs(weight).max(axis=0, keepdims=True), 127)
    return _round(weight, scale, 127, compensation)


def round_blocks(weight: Array, bits: int, block: int, compensation: Compensation | None = None) -> Rounded:
    """Round a weight, with one scale for each block of rows in each column.

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
    """Multiply the scale of each block by the factor in `_SHRINKS` that gives the smallest squared error."""
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
