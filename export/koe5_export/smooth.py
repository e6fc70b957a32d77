"""Channel smoothing: move the range of outlier channels from activations to weights.

Inputs of linear layers are quantized with one scale per token or block. A channel far larger than the others
would determine this scale. Dividing the channel by s, and multiplying the corresponding row of the weight by
s, does not change the product. At inference this costs nothing:

* Query, key, value and the feed-forward network get the output x of a LayerNorm. The division is merged into
  the norm's gain and shift. The next residual sum requires x itself, so it multiplies the norm's output by s.
  In exchange, it need not add the bias of its linear layer, which is also merged into the norm's shift: the
  norm returns a = (x + bias) / s, the residual sum uses a * s = x + bias, and linear layers with the input a
  have the bias b - bias @ W instead of b.
* The attention output is a weighted mean of values, so the division is merged into the value projection.
* GELU outputs are multiplied by a rotation matrix, and the division is merged into the rows of the matrix.
  All blocks use the same matrix, so channels at the same position of their blocks must have the same divisor.
  The inner channels of the feed-forward network are reordered so that such channels have similar divisors.

Source of smoothing: https://arxiv.org/abs/2211.10438

Smoothed inputs are also rotated (rotate.py). The attention output is rotated at no cost: each block is a head
or part of a head, so the rotation is merged into the columns of the value projection and the rows of the
output layer. Other inputs are rotated before they are quantized.
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
"""Number of squarings that give the eighth power of a value. In a mean of eighth powers, all large values
count, not only the largest one."""


@dataclass(frozen=True)
class Strengths:
    """Strengths of smoothing (alpha in SmoothQuant), from 0 to 1.

    1 equalizes the ranges of the input channels; 0 equalizes those of the rows of the weight.
    """

    attention: float
    """Strength for the inputs of query, key and value."""
    context: float
    """Strength for the inputs of the attention's output layer."""
    ffn: float
    """Strength for the inputs of the first linear layer of the feed-forward network."""
    gelu: float
    """Strength for the inputs of the second linear layer of the feed-forward network."""


@dataclass(frozen=True)
class LinearInputs:
    """Inputs of one linear layer on calibration texts."""

    values: Array
    """float32[tokens, in]."""
    peak: Array
    """float32[in]: magnitude of the large values of each channel, the eighth root of their mean eighth power.
    `shifted` and `rotated` do not update it."""

    @classmethod
    def of(cls, x: Array) -> Self:
        """Measure the inputs x, float32[tokens, in]."""
        largest = np.maximum(np.maximum(x.max(axis=0), -x.min(axis=0)), _SMALLEST)
        power = x / largest
        for _ in range(_PEAK_SQUARINGS):  # np.power takes ten times as long
            np.square(power, out=power)
        return cls(x, largest * power.mean(axis=0) ** (0.5**_PEAK_SQUARINGS))

    @cached_property
    def mean(self) -> Array:
        """float32[in]: mean of each channel over the tokens."""
        return np.asarray(self.values.mean(axis=0))

    @property
    def covariance(self) -> Array:
        """float32[in, in]: covariance of the channels, as a sum over the tokens."""
        centered = self.values - self.mean
        return np.asarray(centered.T @ centered)

    @cached_property
    def sample(self) -> Array:
        """float32[tokens, in]: values of evenly spaced tokens, at most `_SAMPLE_TOKENS`."""
        return self.values[:: -(-len(self.values) // _SAMPLE_TOKENS)].copy()

    def shifted(self, shift: Array) -> LinearInputs:
        """Return inputs + shift."""
        return LinearInputs(self.values + shift, self.peak)

    def divided(self, divisors: Array) -> LinearInputs:
        """Return inputs / divisors, with one divisor per channel."""
        return LinearInputs(self.values / divisors, self.peak / divisors)

    def ordered(self, order: npt.NDArray[np.intp]) -> LinearInputs:
        """Return inputs[:, order]."""
        return LinearInputs(self.values.take(order, axis=1), self.peak[order])

    def rotated(self, matrix: Array | None) -> LinearInputs:
        """Return the inputs with each block of channels multiplied by `matrix`, unless it is None."""
        return LinearInputs(rotated(self.values, matrix), self.peak)


@dataclass(frozen=True)
class LayerInputs:
    """Inputs of the linear layers of one encoder layer on calibration texts; names are as in `Strengths`."""

    attention: LinearInputs
    context: LinearInputs
    ffn: LinearInputs
    gelu: LinearInputs


Round = Callable[[Array, LinearInputs, Compensation], Rounded]
"""Function that rounds a weight, float32[in, out], for the given inputs and their `Compensation`."""


@dataclass(frozen=True)
class SmoothLayer:
    """An encoder layer after smoothing and rounding, together with the norm before it."""

    input_norm: Norm
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    attention_skip: Array | None
    """float32[hidden]: the divisors s of `input_norm`. The sum after the attention multiplies by s (see
    the module docstring). None without smoothing."""
    attention_norm: Norm
    up: Linear
    down: Linear
    ffn_skip: Array | None
    """float32[hidden]: the divisors s of `attention_norm`, used after the feed-forward network. None without
    smoothing."""
    output_norm: Norm


def plain(input_norm: Norm, layer: Layer) -> SmoothLayer:
    """Return a layer unchanged, for precisions without smoothing."""
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
    """Smooth and rotate the inputs of all linear layers of an encoder layer, and round the weights.

    Without rounding, the outputs of the encoder layer do not change.

    Args:
        input_norm: The norm before the encoder layer.
        layer: Weights of the encoder layer.
        inputs: Inputs of the linear layers on calibration texts.
        strengths: Strengths of smoothing.
        heads: Number of attention heads.
        round_weight: Function that rounds a weight; None for no rounding.
    """
    context = _divisors(inputs.context.peak, layer.output.weight, strengths.context)
    head = rotation(len(context) // heads)
    output = replace(layer.output, weight=rotated_rows(layer.output.weight * context[:, None], head))
    (output,) = _rounded([output], inputs.context.divided(context).rotated(head), round_weight)
    inner, inner_divisors = _dealt(_inner_divisors(inputs.gelu.peak, layer.down.weight, strengths.gelu))
    down = replace(layer.down, weight=layer.down.weight[inner] * inner_divisors[:, None])
    (down,) = _read_rotated([down], inputs.gelu.ordered(inner).divided(inner_divisors), round_weight)
    if down.rotation is not None:
        down = replace(down, divisors=inner_divisors[: len(down.rotation)])

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
    return _balance(peak, np.abs(weight).max(axis=1), strength)


def _balance(peak: Array, rows: Array, strength: float) -> Array:
    divisors = np.maximum(peak, _SMALLEST) ** strength / np.maximum(rows, _SMALLEST) ** (1 - strength)
    return np.asarray(np.maximum(divisors, _SMALLEST), dtype=np.float32)


def _inner_divisors(peak: Array, weight: Array, strength: float) -> Array:
    """Return the divisors of GELU outputs, float32[in].

    A row of the weight is measured by its root mean square instead of its largest value, which the rotation
    will spread.
    """
    return _balance(peak, np.sqrt(np.square(weight).mean(axis=1)), strength)


def _dealt(divisors: Array) -> tuple[npt.NDArray[np.intp], Array]:
    """Reorder the inner channels of the feed-forward network, so that all blocks can have the same divisors.

    The channels are sorted by divisor and distributed over the blocks in turn. Each block thus has large and
    small channels to rotate, and channels at the same position of all blocks have similar divisors. Their
    geometric mean replaces these divisors, so that the rotation matrix of all blocks can include the
    division.

    Returns:
        The order of the channels, intp[inner], and the divisors in this order, float32[inner].
    """
    matrix = rotation(len(divisors))
    if matrix is None:
        return np.arange(len(divisors)), np.ones_like(divisors)
    blocks = len(divisors) // len(matrix)
    order = np.argsort(-divisors, kind="stable").reshape(-1, blocks)
    shared = np.log(divisors[order]).mean(axis=1)
    shared = np.exp(shared - shared.mean(), dtype=np.float32)
    return order.T.reshape(-1), np.tile(shared, blocks)


def _divided(norm: Norm, divisors: Array, bias: Array) -> Norm:
    """Return a norm whose output is (x + bias) / divisors, where x is the output of `norm`."""
    return Norm(norm.gain / divisors, (norm.shift + bias) / divisors)


def _read_smoothed(linear: Linear, divisors: Array, bias: Array) -> Linear:
    """Return a linear layer whose output for (x + bias) / divisors equals that of `linear` for x."""
    correction = bias.astype(np.float64) @ linear.weight.astype(np.float64)
    return Linear(linear.weight * divisors[:, None], (linear.bias - correction).astype(np.float32))


def _read_rotated(linears: list[Linear], inputs: LinearInputs, round_weight: Round | None) -> list[Linear]:
    """Make linear layers rotate their inputs, and round the weights. `inputs` are not rotated yet."""
    matrix = rotation(len(inputs.mean))
    turned = [
        replace(linear, weight=rotated_rows(linear.weight, matrix), rotation=matrix) for linear in linears
    ]
    return _rounded(turned, inputs.rotated(matrix), round_weight)


def _rounded(linears: list[Linear], inputs: LinearInputs, round_weight: Round | None) -> list[Linear]:
    """Round linear layers with the same inputs, and correct the biases so that mean outputs do not change."""
    if round_weight is None:
        return linears
    compensation = Compensation.of(inputs.covariance)
    found = []
    for linear in linears:
        rounded = round_weight(linear.weight, inputs, compensation)
        moved = inputs.mean @ (linear.weight - rounded.weight)
        found.append(replace(linear, bias=linear.bias + moved, rounded=rounded))
    return found
