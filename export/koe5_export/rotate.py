"""Rotate the inputs of linear layers before they are quantized to 8 bits.

If inputs are multiplied by an orthogonal matrix, and the weight by its transpose, their product does not
change. The rotation spreads the values of large channels over a block of channels. This reduces the largest
value of each token, and with it the token's scale and rounding errors. It also reduces rounding errors of the
weight.
Source of the idea: https://arxiv.org/abs/2404.00456

The matrix is a scaled Hadamard matrix. If its size is a power of four, all columns have the same sum, so a
mean that all channels of a block have in common is also spread over the block. The fused kernels apply the
matrix of size 64 with additions (kernels/src/rotation.h).
"""

from __future__ import annotations

from functools import reduce

import numpy as np

from koe5_export.weights import Array

LONGEST = 64
"""Largest number of channels per block: the head size of most encoders, and four registers of 16 floats."""
_FOUR = np.array([[1, 1, 1, -1], [1, -1, 1, 1], [1, 1, -1, 1], [-1, 1, 1, 1]], np.float32) / 2
_TWO = np.array([[1, 1], [1, -1]], np.float32) / np.float32(np.sqrt(2))


def rotation(width: int) -> Array | None:
    """Return the rotation matrix for inputs with `width` channels: float32[block, block].

    The block is the largest power of two up to `LONGEST` that divides the width. If it is 1, return None.
    """
    block = int(np.gcd(width, LONGEST))
    if block == 1:
        return None
    doublings = block.bit_length() - 1
    factors = [_FOUR] * (doublings // 2) + [_TWO] * (doublings % 2)
    matrix = reduce(np.kron, factors)
    # The kernels return outputs in an order in which the index of the first factor varies fastest.
    first = len(factors[0])
    ordered = matrix.reshape(block, first, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(ordered.reshape(block, block), dtype=np.float32)


def rotated(x: Array, matrix: Array | None) -> Array:
    """Multiply each block of the last axis of x, float32[..., width], by the matrix, unless it is None."""
    if matrix is None:
        return x
    return np.asarray((x.reshape(-1, len(matrix)) @ matrix).reshape(x.shape), dtype=np.float32)


def rotated_rows(weight: Array, matrix: Array | None) -> Array:
    """Return a weight, float32[in, out], whose product with rotated inputs equals the original product."""
    if matrix is None:
        return weight
    return np.asarray(matrix.T @ weight.reshape(-1, len(matrix), weight.shape[1])).reshape(weight.shape)
