"""Weights of an encoder layer as plain arrays: what checkpoint.py reads and later steps transform."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rounded:
    """A weight matrix in integers: each stands for itself times the scale of its block of rows and column."""

    integers: npt.NDArray[np.int8]
    """int8[in, out]."""
    scale: Array
    """float32[blocks, out]; blocks of rows are equally long, and 1 where a column has one scale."""

    @property
    def weight(self) -> Array:
        """float32[in, out]: what the integers stand for."""
        blocks = self.integers.reshape(len(self.scale), -1, self.integers.shape[1])
        return np.asarray((blocks * self.scale[:, None]).reshape(self.integers.shape), dtype=np.float32)


@dataclass(frozen=True)
class Linear:
    """y = x @ weight + bias."""

    weight: Array
    """float32[in, out]."""
    bias: Array
    """float32[out]."""
    rounded: Rounded | None = None
    """The weight in integers; None where it stays as it is."""
    rotation: Array | None = None
    """float32[block, block] that each block of x is multiplied by first (rotate.py); None if none is."""


@dataclass(frozen=True)
class Norm:
    """LayerNorm: (x - mean) / deviation * gain + shift, over the last axis."""

    gain: Array
    """float32[hidden]."""
    shift: Array
    """float32[hidden]."""


@dataclass(frozen=True)
class Layer:
    """One encoder layer, post-norm: each norm comes after its residual sum."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm
