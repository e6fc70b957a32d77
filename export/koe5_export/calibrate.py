"""Measure the inputs of linear layers on calibration texts, in NumPy, one layer at a time.

Each layer that export.py reads is also applied to the hidden states of the calibration texts. Calibration
thus runs no PyTorch model, and does not read the layers a second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from koe5_export.checkpoint import Checkpoint
from koe5_export.smooth import LayerInputs, LinearInputs
from koe5_export.weights import Array, Layer, Linear, Norm

_GELU_VALUES = 1 << 16
"""Number of values that `gelu` computes at a time, so that its intermediate arrays fit in the cache."""


class Calibration:
    """Hidden states of the calibration texts, stored without padding and updated layer by layer.

    Args:
        checkpoint: Checkpoint with the embedding tables.
        ids: Token ids per text, int32[length], including special tokens.
    """

    def __init__(self, checkpoint: Checkpoint, ids: Sequence[npt.NDArray[np.int32]]) -> None:
        self._config = checkpoint.config
        self._ends = np.cumsum([len(row) for row in ids])
        self._summed = _embed(checkpoint, ids)

    def advance(self, input_norm: Norm, layer: Layer) -> LayerInputs:
        """Apply one encoder layer and the norm before it, and return the inputs of its linear layers."""
        x = self._norm(self._summed, input_norm)
        context = self._attend(x, layer)
        middle = x + _apply(context, layer.output)
        y = self._norm(middle, layer.attention_norm)
        inner = gelu(_apply(y, layer.up))
        self._summed = y + _apply(inner, layer.down)
        return LayerInputs(
            attention=LinearInputs.of(x),
            context=LinearInputs.of(context),
            ffn=LinearInputs.of(y),
            gelu=LinearInputs.of(inner),
        )

    def _norm(self, x: Array, norm: Norm) -> Array:
        out = x - x.mean(axis=1, keepdims=True)
        deviation = np.sqrt(np.square(out).mean(axis=1, keepdims=True) + np.float32(self._config.epsilon))
        out /= deviation
        out *= norm.gain
        out += norm.shift
        return np.asarray(out, dtype=np.float32)

    def _attend(self, x: Array, layer: Layer) -> Array:
        query, key, value = (_apply(x, linear) for linear in (layer.query, layer.key, layer.value))
        out = np.empty_like(x)
        start = 0
        for end in self._ends:
            rows = slice(start, end)
            out[rows] = _attention(query[rows], key[rows], value[rows], self._config.heads)
            start = end
        return out


def gelu(x: Array) -> Array:
    """Compute GELU, x * (1 + erf(x / sqrt 2)) / 2, with an approximation of erf.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26 (error below 1.5e-7).
    """
    out = np.empty(x.size, dtype=np.float32)
    flat = np.ascontiguousarray(x).reshape(-1)
    for start in range(0, len(out), _GELU_VALUES):
        part = slice(start, start + _GELU_VALUES)
        out[part] = _gelu(flat[part])
    return out.reshape(x.shape)


def _gelu(x: Array) -> Array:
    z = np.abs(x) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - series * np.exp(-z * z))
    return np.asarray(x * (1 + erf) / 2, dtype=np.float32)


def _apply(x: Array, linear: Linear) -> Array:
    out = x @ linear.weight
    out += linear.bias  # in place, because allocating new pages takes as long as the sum
    return out


def _attention(query: Array, key: Array, value: Array, heads: int) -> Array:
    length, hidden = query.shape
    q, k, v = (part.reshape(length, heads, -1).transpose(1, 0, 2) for part in (query, key, value))
    scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(hidden // heads))
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    return np.asarray((weights @ v).transpose(1, 0, 2).reshape(length, hidden), dtype=np.float32)


def _embed(checkpoint: Checkpoint, ids: Sequence[npt.NDArray[np.int32]]) -> Array:
    """Return the sum of word, position and token-type embeddings of all tokens: float32[tokens, hidden]."""
    table = checkpoint.positions(max(len(row) for row in ids))
    positions = [_positions(row, checkpoint) for row in ids]
    words = _rows_of(checkpoint.word_embeddings(), np.concatenate(ids))
    return np.asarray(words + table[np.concatenate(positions)])


def _positions(row: npt.NDArray[np.int32], checkpoint: Checkpoint) -> npt.NDArray[np.intp]:
    """Return the index of each token of a text in the table `Checkpoint.positions`: intp[length]."""
    if not checkpoint.config.counts_from_pad:
        return np.arange(len(row))
    is_token = row != checkpoint.config.pad_id
    return np.asarray(np.cumsum(is_token) * is_token)


def _rows_of(table_parts: Iterable[Array], ids: npt.NDArray[np.int32]) -> Array:
    """Look up `ids` in a table that is read in groups of rows: float32[len(ids), hidden]."""
    parts: list[Array] = []
    where = np.full(len(ids), -1)
    start = found = 0
    for part in table_parts:
        unique = np.unique(ids[(ids >= start) & (ids < start + len(part))])
        parts.append(part[unique - start])
        inside = np.isin(ids, unique)
        where[inside] = found + np.searchsorted(unique, ids[inside])
        start, found = start + len(part), found + len(unique)
    return np.asarray(np.concatenate(parts)[where])
