"""numpy implementations of operators of the packed CUDA graph, for onnx.reference.

They compute in at least fp32 and return the type of their inputs. BiasGelu adds its bias in the type of the
inputs. Like flash attention, PackedMultiHeadAttention uses only the cumulative lengths. It
also checks `token_offset`, which kernels without flash attention read.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from onnx.reference.op_run import OpRun

erf = np.vectorize(math.erf, otypes=[np.float64])


def _rounded(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(like.dtype)


class PackedMultiHeadAttention(OpRun):
    op_domain = "com.microsoft"

    def _run(self, query, key, value, bias, token_offset, cumulative, num_heads=None):
        tokens, width = query.shape
        lengths = np.diff(cumulative)
        check_offsets(token_offset, lengths, tokens)
        assert bias is None  # or ONNX Runtime would copy queries, keys and values
        rows = (query, key, value)
        q, k, v = (x.astype(np.float32).reshape(tokens, num_heads, -1).swapaxes(0, 1) for x in rows)
        out = np.empty((tokens, width), np.float32)
        for start, end in itertools.pairwise(cumulative):
            scores = q[:, start:end] @ k[:, start:end].swapaxes(1, 2) / np.sqrt(width // num_heads)
            weights = np.exp(scores - scores.max(axis=2, keepdims=True))
            weights /= weights.sum(axis=2, keepdims=True)
            out[start:end] = (weights @ v[:, start:end]).swapaxes(0, 1).reshape(end - start, width)
        return (_rounded(out, query),)


def check_offsets(token_offset: np.ndarray, lengths: np.ndarray, tokens: int) -> None:
    """Check that `token_offset` lists the slots of all tokens, then those of padding, in a padded batch."""
    texts, longest = token_offset.shape
    assert (texts, longest) == (len(lengths), lengths.max())
    real = [text * longest + place for text in range(texts) for place in range(lengths[text])]
    padding = [text * longest + place for text in range(texts) for place in range(lengths[text], longest)]
    assert len(real) == tokens
    assert token_offset.dtype == np.int32
    assert token_offset.ravel().tolist() == real + padding


class SkipLayerNormalization(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, skip, gamma, beta, bias, epsilon=None):
        summed = x.astype(np.float32) + skip.astype(np.float32) + bias.astype(np.float32)
        centered = summed - summed.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.square(centered).mean(axis=-1, keepdims=True) + np.float32(epsilon))
        return (_rounded(centered / deviation * gamma.astype(np.float32) + beta.astype(np.float32), x),)


class BiasGelu(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, bias):
        y = (x + bias).astype(np.float32)
        return (_rounded(y * 0.5 * (1 + erf(y / np.sqrt(2))), x),)


class MatMul(OpRun):
    """MatMul with sums in fp32, as on a GPU; numpy would sum fp16 products in fp16."""

    def _run(self, a, b):
        return (_rounded(a.astype(np.float32) @ b.astype(np.float32), a),)


OPERATORS = [PackedMultiHeadAttention, SkipLayerNormalization, BiasGelu, MatMul]
