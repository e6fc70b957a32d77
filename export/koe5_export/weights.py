"""Weights of an encoder layer as NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rounded:
    """A quantized weight, int8[in, out]. In each column, each block of rows has one scale."""

    integers: npt.NDArray[np.int8]
    scale: Array
    """float32[blocks, out]; all blocks have the same number of rows."""

    @property
    def weight(self) -> Array:
        """Dequantized weight, float32[in, out]."""
        blocks = self.integers.reshape(len(self.scale), -1, self.integers.shape[1])
        return np.asarray((blocks * self.scale[:, None]).reshape(self.integers.shape), dtype=np.float32)


@dataclass(frozen=True)
class Linear:
    """A linear layer: y = x @ weight + bias, with the weight float32[in, out] and the bias float32[out]."""

    weight: Array
    bias: Array
    rounded: Rounded | None = None
    """Quantized weight; None if the weight is not quantized."""
    rotation: Array | None = None
    """float32[block, block]: matrix that rotates each block of x before the product (rotate.py), or None."""
    divisors: Array | None = None
    """float32[block]: divisors of each block of x before the rotation (smooth.py), or None."""


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the last axis: (x - mean) / deviation * gain + shift."""

    gain: Array
    """float32[hidden]."""
    shift: Array
    """float32[hidden]."""


@dataclass(frozen=True)
class Layer:
    """Weights of one post-norm encoder layer, in which a norm follows each residual sum.

    `output` belongs to the attention, `up` and `down` to the feed-forward network.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm
