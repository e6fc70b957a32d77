"""Rounding weights to integers so that the products, not the weights, come out nearest.

Rounding each weight by itself ignores what it is multiplied with. Here rows are rounded one after the other,
and each takes over the error of the rows before it as far as their inputs move together. How far that is
stands in the Gram matrix of calibration inputs, factored as H = U D U' with U unit upper triangular:
row k is rounded after adding U[j, k] times the error of every earlier row j.
Source of the method (GPTQ, in the form called LDLQ): https://arxiv.org/abs/2210.17323,
https://arxiv.org/abs/2307.13304.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from koe5_export.weights import Array

DAMPING = 0.03
"""Share of the mean diagonal added to the Gram matrix: fewer tokens than channels leave it singular."""
_BLOCK = 128
"""Rows whose corrections from earlier blocks are computed in one product."""
_SMALLEST_SCALE = np.float32(1e-12)


def round_columns(weight: Array, gram: Array | None = None) -> tuple[npt.NDArray[np.int8], Array]:
    """Round a matrix to int8, each column over its own range.

    Args:
        weight: float32[in, out].
        gram: float32[in, in], inputs' x @ inputs over calibration tokens; None rounds to nearest.

    Returns:
        int8[in, out] and float32[out]: their product stands for `weight`.
    """
    scale = np.maximum(np.abs(weight).max(axis=0) / np.float32(127), _SMALLEST_SCALE).astype(np.float32)
    if gram is None:
        return _nearest(weight / scale), scale
    # Inputs with the most energy first: their errors are the ones worth compensating.
    order = np.argsort(-np.diag(gram), kind="stable")
    integers = np.empty(weight.shape, dtype=np.int8)
    integers[order] = _round_in_order(weight[order] / scale, _feedback(gram[np.ix_(order, order)]))
    return integers, scale


def _round_in_order(rows: Array, feedback: Array) -> npt.NDArray[np.int8]:
    """Round rows from the first to the last, each corrected by the errors before it."""
    integers = np.empty(rows.shape, dtype=np.int8)
    errors = np.zeros_like(rows)
    for start in range(0, len(rows), _BLOCK):
        end = min(start + _BLOCK, len(rows))
        corrected = rows[start:end] + feedback[:start, start:end].T @ errors[:start]
        for row in range(start, end):
            target = corrected[row - start] + feedback[start:row, row] @ errors[start:row]
            integers[row] = _nearest(target)
            errors[row] = rows[row] - integers[row]
    return integers


def _feedback(gram: Array) -> Array:
    """The factor U of H = U D U': unit upper triangular, float32[in, in]."""
    damped = gram.astype(np.float64)
    np.fill_diagonal(damped, damped.diagonal() + max(DAMPING * damped.diagonal().mean(), 1e-30))
    # A Cholesky factor is lower triangular; turned by 180 degrees it is the upper one.
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return np.asarray(upper / upper.diagonal(), dtype=np.float32)


def _nearest(values: Array) -> npt.NDArray[np.int8]:
    return np.clip(np.rint(values), -127, 127).astype(np.int8)
