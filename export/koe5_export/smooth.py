"""Channel smoothing: moving the range of outlier channels from activations into weights, at no cost.

A channel far larger than the others would take the whole 8-bit range of its token. Dividing the channel by
s and multiplying the weight rows that read it by s leaves every product as it was. What makes it free here:

* In front of query, key, value and of the feed-forward block stands a LayerNorm, whose gain and shift take
  the division. The residual branch needs the undivided x back, which is one multiplication; to pay for it,
  the norm's shift also takes the bias that the residual sum would add: with a = (x + bias) / s,
  x + bias = a * s, and the linears reading a subtract what the bias added: b - bias @ W.
* The attention output is a weighted mean of values, so its channels are divided in the value projection.

The idea of balancing activations against weights: https://arxiv.org/abs/2211.10438

What smoothing leaves is then rotated (rotate.py). For the attention output that is free as well, since a
block is a head or part of one: V's columns and the output's rows take it. Other inputs are rotated where they
are rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from koe5_export.rotate import rotated, rotated_rows, rotation
from koe5_export.rounding import Compensation
from koe5_export.weights import Array, Layer, Linear, Norm, Rounded

_SMALLEST = np.float32(1e-5)
_SAMPLE_TOKENS = 256
_PEAK_SQUARINGS = 3
"""The eighth power: high enough to see a channel's largest values, low enough not to follow the very largest
of one token."""


@dataclass(frozen=True)
class Strengths:
    """Share of a channel's range that moves into the weights: 0 none, 1 all of it."""

    attention: float
    """Of the inputs of query, key and value."""
    context: float
    """Of the attention output."""
    ffn: float
    """Of the inputs of the feed-forward block."""


@dataclass(frozen=True)
class Inputs:
    """What calibration texts put into one linear."""

    values: Array
    """float32[tokens, in]."""
    peak: Array
    """float32[in]: the size of each channel's large values, by the mean of their eighth power. Shifting and
    rotating the values leave it as it was measured."""

    @classmethod
    def of(cls, x: Array) -> Self:
        """Measure inputs float32[tokens, in]."""
        largest = np.maximum(np.maximum(x.max(axis=0), -x.min(axis=0)), _SMALLEST)
        power = x / largest
        for _ in range(_PEAK_SQUARINGS):  # a general power takes ten times as long
            np.square(power, out=power)
        return cls(x, largest * power.mean(axis=0) ** (0.5**_PEAK_SQUARINGS))

    @cached_property
    def mean(self) -> Array:
        """float32[in]."""
        return np.asarray(self.values.mean(axis=0))

    @property
    def covariance(self) -> Array:
        """float32[in, in], summed over tokens."""
        centered = self.values - self.mean
        return np.asarray(centered.T @ centered)

    @cached_property
    def sample(self) -> Array:
        """float32[tokens, in]: some of the values."""
        return self.values[:: -(-len(self.values) // _SAMPLE_TOKENS)].copy()

    def shifted(self, shift: Array) -> Inputs:
        """Return inputs + shift."""
        return Inputs(self.values + shift, self.peak)

    def divided(self, divisors: Array) -> Inputs:
        """Return inputs / divisors, channel by channel."""
        return Inputs(self.values / divisors, self.peak / divisors)

    def ordered(self, order: npt.NDArray[np.intp]) -> Inputs:
        """Return inputs[:, order]."""
        return Inputs(self.values.take(order, axis=1), self.peak[order])

    def rotated(self, matrix: Array | None) -> Inputs:
        """Return the inputs with each block of channels multiplied by a matrix."""
        return Inputs(rotated(self.values, matrix), self.peak)


@dataclass(frozen=True)
class LayerInputs:
    """What calibration texts put into the linears of one layer."""

    attention: Inputs
    """Of query, key and value."""
    context: Inputs
    """Of the attention output's linear."""
    ffn: Inputs
    """Of the feed-forward block's first linear."""
    gelu: Inputs
    """Of the feed-forward block's second linear."""


Round = Callable[[Array, Inputs, Compensation], Rounded]
"""Rounds a weight float32[in, out], given what its inputs are like."""


@dataclass(frozen=True)
class SmoothLayer:
    """A layer ready to be written: the norm in front of it is its own, and residuals may be smoothed."""

    input_norm: Norm
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    attention_skip: Array | None
    """float32[hidden] that turns the smoothed input back into x + output.bias; None where not smoothed."""
    attention_norm: Norm
    up: Linear
    down: Linear
    ffn_skip: Array | None
    output_norm: Norm


def plain(input_norm: Norm, layer: Layer) -> SmoothLayer:
    """A layer as it is, for precisions that need no smoothing."""
    return SmoothLayer(
        input_norm=input_norm,
        query=layer.query,
        key=layer.key,
        value=layer.value,
        output=layer.output,
        attention_skip=None,
        attention_norm=layer.attention_norm,
        up=layer.up,
        down=layer.down,
        ffn_skip=None,
        output_norm=layer.output_norm,
    )


def smooth(
    input_norm: Norm,
    layer: Layer,
    inputs: LayerInputs,
    strengths: Strengths,
    heads: int,
    round_weight: Round | None = None,
) -> SmoothLayer:
    """Smooth and rotate the inputs of a layer's linears and round its weights; it computes what it did.

    Args:
        input_norm: The norm in front of the layer.
        layer: Its weights.
        inputs: Measured on calibration texts.
        strengths: How much of the channels' range moves.
        heads: Heads of its attention.
        round_weight: How weights become integers; None leaves them as they are.
    """
    context = _divisors(inputs.context.peak, layer.output.weight, strengths.context)
    head = rotation(len(context) // heads)
    output = replace(layer.output, weight=rotated_rows(layer.output.weight * context[:, None], head))
    (output,) = _rounded([output], inputs.context.divided(context).rotated(head), round_weight)
    inner = _dealt(inputs.gelu.peak)
    down = replace(layer.down, weight=layer.down.weight[inner])
    (down,) = _read_rotated([down], inputs.gelu.ordered(inner), round_weight)

    value = replace(
        layer.value,
        weight=rotated(layer.value.weight / context, head),
        bias=rotated(layer.value.bias / context, head),
    )
    triple = [layer.query, layer.key, value]
    joined = np.concatenate([layer.query.weight, layer.key.weight, layer.value.weight], axis=1)
    attention_skip = _divisors(inputs.attention.peak, joined, strengths.attention)
    triple = [_read_smoothed(linear, attention_skip, output.bias) for linear in triple]
    attention = inputs.attention.shifted(output.bias).divided(attention_skip)
    query, key, value = _read_rotated(triple, attention, round_weight)

    ffn_skip = _divisors(inputs.ffn.peak, layer.up.weight, strengths.ffn)
    up = replace(layer.up, weight=layer.up.weight.take(inner, axis=1), bias=layer.up.bias[inner])
    up = _read_smoothed(up, ffn_skip, down.bias)
    (up,) = _read_rotated([up], inputs.ffn.shifted(down.bias).divided(ffn_skip), round_weight)
    return SmoothLayer(
        input_norm=_divided(input_norm, attention_skip, output.bias),
        query=query,
        key=key,
        value=value,
        output=output,
        attention_skip=attention_skip,
        attention_norm=_divided(layer.attention_norm, ffn_skip, down.bias),
        up=up,
        down=down,
        ffn_skip=ffn_skip,
        output_norm=layer.output_norm,
    )


def _divisors(peak: Array, weight: Array, strength: float) -> Array:
    """float32[in]: by how much each input channel is divided."""
    rows = np.abs(weight).max(axis=1)
    divisors = np.maximum(peak, _SMALLEST) ** strength / np.maximum(rows, _SMALLEST) ** (1 - strength)
    return np.asarray(np.maximum(divisors, _SMALLEST), dtype=np.float32)


def _dealt(peak: Array) -> npt.NDArray[np.intp]:
    """An order of the feed-forward block's inner channels in which each block has equally many large ones.

    A rotation spreads values over their own block only, and this order costs nothing.
    """
    matrix = rotation(len(peak))
    blocks = len(peak) if matrix is None else len(peak) // len(matrix)
    return np.argsort(-peak, kind="stable").reshape(-1, blocks).T.reshape(-1)


def _divided(norm: Norm, divisors: Array, bias: Array) -> Norm:
    """The norm whose output is (x + bias) / divisors."""
    return Norm(norm.gain / divisors, (norm.shift + bias) / divisors)


def _read_smoothed(linear: Linear, divisors: Array, bias: Array) -> Linear:
    """The linear that gives from (x + bias) / divisors what it gave from x."""
    correction = bias.astype(np.float64) @ linear.weight.astype(np.float64)
    return Linear(linear.weight * divisors[:, None], (linear.bias - correction).astype(np.float32))


def _read_rotated(linears: list[Linear], inputs: Inputs, round_weight: Round | None) -> list[Linear]:
    """Linears that rotate their inputs, rounded."""
    matrix = rotation(len(inputs.mean))
    turned = [
        replace(linear, weight=rotated_rows(linear.weight, matrix), rotation=matrix) for linear in linears
    ]
    return _rounded(turned, inputs.rotated(matrix), round_weight)


def _rounded(linears: list[Linear], inputs: Inputs, round_weight: Round | None) -> list[Linear]:
    """Linears with the same inputs, rounded; what that does to the mean of their outputs is taken back."""
    if round_weight is None:
        return linears
    compensation = Compensation.of(inputs.covariance)
    found = []
    for linear in linears:
        rounded = round_weight(linear.weight, inputs, compensation)
        moved = inputs.mean @ (linear.weight - rounded.weight)
        found.append(replace(linear, bias=linear.bias + moved, rounded=rounded))
    return found
