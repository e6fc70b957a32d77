"""Rotation of a linear's inputs before they are rounded to 8 bits.

An orthogonal matrix on the inputs and its transpose on the weight leave every product as it was. What a large
channel had is then spread over a block of channels, so that the scale of a token, and with it the rounding
error of its channels, becomes smaller; the weight's columns gain the same way.
Source of the idea: https://arxiv.org/abs/2404.00456

The matrix is a Hadamard matrix whose rows all have the same sum, so that a mean which the channels of a block
have in common is spread too. The fused kernels apply it by additions (kernels/src/rotation.h).
"""

from __future__ import annotations

from functools import reduce

import numpy as np

from koe5_export.weights import Array

LONGEST = 64
"""Channels of a block: the size of a head in most encoders, and four registers of 16 values."""
_FOUR = np.array([[1, 1, 1, -1], [1, -1, 1, 1], [1, 1, -1, 1], [-1, 1, 1, 1]], np.float32) / 2
_TWO = np.array([[1, 1], [1, -1]], np.float32) / np.float32(np.sqrt(2))


def rotation(width: int) -> Array | None:
    """The matrix for inputs of a width, or for heads of a size: float32[block, block].

    The block is the longest power of two up to `LONGEST` that divides the width; None if that is 1.
    """
    block = int(np.gcd(width, LONGEST))
    if block == 1:
        return None
    doublings = block.bit_length() - 1
    factors = [_FOUR] * (doublings // 2) + [_TWO] * (doublings % 2)
    matrix = reduce(np.kron, factors)
    # The order in which the kernels' registers end: the first factor's index moves fastest.
    first = len(factors[0])
    ordered = matrix.reshape(block, first, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(ordered.reshape(block, block), dtype=np.float32)


def rotated(x: Array, matrix: Array | None) -> Array:
    """x float32[..., width] with each block of the last axis multiplied by the matrix."""
    if matrix is None:
        return x
    return np.asarray((x.reshape(-1, len(matrix)) @ matrix).reshape(x.shape), dtype=np.float32)


def rotated_rows(weight: Array, matrix: Array | None) -> Array:
    """The weight float32[in, out] that gives from rotated inputs what it gave from the inputs themselves."""
    if matrix is None:
        return weight
    return np.asarray(matrix.T @ weight.reshape(-1, len(matrix), weight.shape[1])).reshape(weight.shape)
