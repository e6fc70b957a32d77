"""Weights of an encoder layer as plain arrays: what checkpoint.py reads and later steps transform."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """y = x @ weight + bias."""

    weight: Array
    """float32[in, out]."""
    bias: Array
    """float32[out]."""
    gram: Array | None = None
    """float32[in, in]: x.T @ x over calibration tokens, for rounding the weight; None where not measured."""


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
