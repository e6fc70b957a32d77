"""Channel smoothing: moving the range of outlier channels from activations into weights, at no cost.

A channel far larger than the others would take the whole 8-bit range of its token. Dividing the channel by
s and multiplying the weight rows that read it by s leaves every product as it was. What makes it free here:

* In front of query, key, value and of the feed-forward block stands a LayerNorm, whose gain and shift take
  the division. The residual branch needs the undivided x back, which is one multiplication; to pay for it,
  the norm's shift also takes the bias that the residual sum would add: with a = (x + bias) / s,
  x + bias = a * s, and the linears reading a subtract what the bias added: b - bias @ W.
* The attention output is a weighted mean of values, so its channels are divided in the value projection.

The idea of balancing activations against weights: https://arxiv.org/abs/2211.10438
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from koe5_export.weights import Array, Layer, Linear, Norm

STRENGTH = 0.6
"""Share of a channel's range that moves into the weights; measured in benchmarks/NOTES.md."""
_SMALLEST = np.float32(1e-5)


@dataclass(frozen=True)
class Inputs:
    """What calibration texts put into one linear."""

    largest: Array
    """float32[in]: largest magnitude of each channel."""
    gram: Array
    """float32[in, in]: x.T @ x over all tokens."""

    @classmethod
    def of(cls, x: Array) -> Inputs:
        """Measure inputs float32[tokens, in]."""
        return cls(np.abs(x).max(axis=0), x.T @ x)

    def gram_divided(self, divisors: Array) -> Array:
        """The Gram matrix of the inputs divided by `divisors`, channel by channel."""
        return np.asarray(self.gram / divisors[:, None] / divisors[None, :], dtype=np.float32)


@dataclass(frozen=True)
class LayerInputs:
    """What calibration texts put into the linears of one layer."""

    attention: Inputs
    """Of query, key and value, with the attention output's bias added."""
    context: Inputs
    """Of the attention output's linear."""
    ffn: Inputs
    """Of the feed-forward block's first linear, with the second's bias added."""
    gelu: Inputs
    """Of the feed-forward block's second linear."""
    gelu_max: float
    """Median over tokens of the largest GELU output."""


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
    gelu_max: float


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
        gelu_max=np.inf,
    )


def smooth(input_norm: Norm, layer: Layer, inputs: LayerInputs, strength: float = STRENGTH) -> SmoothLayer:
    """Smooth the inputs of a layer's linears; the layer computes what it did.

    Args:
        input_norm: The norm in front of the layer.
        layer: Its weights.
        inputs: Measured on calibration texts.
        strength: 0 makes the rows of the weights equally large, 1 the channels of the activations.
    """
    joined = np.concatenate([layer.query.weight, layer.key.weight, layer.value.weight], axis=1)
    attention_skip = _divisors(inputs.attention.largest, joined, strength)
    attention_gram = inputs.attention.gram_divided(attention_skip)
    query, key, value = (
        _read_smoothed(linear, attention_skip, layer.output.bias, attention_gram)
        for linear in (layer.query, layer.key, layer.value)
    )
    context = _divisors(inputs.context.largest, layer.output.weight, strength)
    output_weight = layer.output.weight * context[:, None]
    ffn_skip = _divisors(inputs.ffn.largest, layer.up.weight, strength)
    return replace(
        plain(_divided(input_norm, attention_skip, layer.output.bias), layer),
        query=query,
        key=key,
        value=replace(value, weight=value.weight / context, bias=value.bias / context),
        output=Linear(output_weight, layer.output.bias, inputs.context.gram_divided(context)),
        attention_skip=attention_skip,
        attention_norm=_divided(layer.attention_norm, ffn_skip, layer.down.bias),
        up=_read_smoothed(layer.up, ffn_skip, layer.down.bias, inputs.ffn.gram_divided(ffn_skip)),
        down=replace(layer.down, gram=inputs.gelu.gram),
        ffn_skip=ffn_skip,
        gelu_max=inputs.gelu_max,
    )


def _divisors(activations: Array, weight: Array, strength: float) -> Array:
    """float32[in]: by how much each input channel is divided."""
    rows = np.abs(weight).max(axis=1)
    divisors = np.maximum(activations, _SMALLEST) ** strength / np.maximum(rows, _SMALLEST) ** (1 - strength)
    return np.asarray(np.maximum(divisors, _SMALLEST), dtype=np.float32)


def _divided(norm: Norm, divisors: Array, bias: Array) -> Norm:
    """The norm whose output is (x + bias) / divisors."""
    return Norm(norm.gain / divisors, (norm.shift + bias) / divisors)


def _read_smoothed(linear: Linear, divisors: Array, bias: Array, gram: Array) -> Linear:
    """The linear that gives from (x + bias) / divisors what it gave from x."""
    correction = bias.astype(np.float64) @ linear.weight.astype(np.float64)
    return Linear(linear.weight * divisors[:, None], (linear.bias - correction).astype(np.float32), gram)
