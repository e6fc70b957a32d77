"""RaggedAttention at each level (instruction set), compared with float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tolerances
from kernel_nodes import LEVELS, Kernels, bf16, widened

Array = npt.NDArray[Any]
KernelsAtLevel = Callable[[str], Kernels]
OUTPUTS = {"q": "u8", "scale": "f32"}
HEADS = [(4, 16), (12, 32), (2, 48), (3, 64), (2, 80), (1, 128)]
"""Number of heads and depth: the tiny artifact, MiniLM, KoE5's depth, and depths that do not fill a tile or
exceed one panel."""
BF16_LEVELS = ("avx512_bf16", "amx", "neon_i8mm")
"""Levels that multiply in bf16. The others multiply in fp32."""
TOLERANCE = {
    level: tolerances.ATTENTION_BF16_STEPS if level in BF16_LEVELS else tolerances.ATTENTION_FP32_STEPS
    for level in LEVELS
}


def offsets_of(lengths: Sequence[int]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def random_qkv(rng: np.random.Generator, tokens: int, heads: int, depth: int, spread: float = 1.5) -> Array:
    return bf16(rng.normal(0, spread, (tokens, 3 * heads * depth)))


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def attention(qkv: Array, lengths: Sequence[int], heads: int) -> Array:
    """Compute the operator's result before quantization: float64[T, H]."""
    q, k, v = np.split(widened(qkv).astype(np.float64), 3, axis=1)
    context = np.empty_like(q)
    depth = q.shape[1] // heads
    for start, end in zip(offsets_of(lengths)[:-1], offsets_of(lengths)[1:], strict=True):
        for head in range(heads):
            columns = slice(head * depth, (head + 1) * depth)
            keys, values = k[start:end, columns], v[start:end, columns]
            for first in range(start, end, 1024):
                rows = slice(first, min(end, first + 1024))
                weights = softmax(q[rows, columns] @ keys.T / np.sqrt(depth))
                context[rows, columns] = weights @ values
    return context


def parts_of(qkv: Array, heads: int) -> Array:
    """Rearrange [T, 3 H] to [3 heads, T, depth], the operator's input."""
    return np.ascontiguousarray(
        qkv.reshape(len(qkv), 3 * heads, qkv.shape[1] // (3 * heads)).transpose(1, 0, 2)
    )


def attend(
    kernels: Kernels, qkv: Array, lengths: Sequence[int], heads: int, threads: int = 2
) -> tuple[Array, Array]:
    inputs = {"qkv": parts_of(qkv, heads), "offsets": offsets_of(lengths)}
    q, scale = kernels.run("RaggedAttention", inputs, OUTPUTS, {}, threads=threads)
    return q, scale


def assert_attention(kernels: Kernels, level: str, qkv: Array, lengths: Sequence[int], heads: int) -> None:
    q, scale = attend(kernels, qkv, lengths, heads)
    expected = attention(qkv, lengths, heads)
    steps = np.abs((q.astype(np.float64) - 128) - expected / scale[:, None])
    assert steps.max() <= 0.5 + TOLERANCE[level]
    np.testing.assert_allclose(scale * 127, np.abs(expected).max(axis=1), rtol=TOLERANCE[level] / 127)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("heads", "depth"), HEADS)
def test_texts_of_different_lengths(kernels_at: KernelsAtLevel, level: str, heads: int, depth: int) -> None:
    rng = np.random.default_rng(depth)
    lengths = [1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 63, 65, 96, 129, *rng.integers(1, 600, 3).tolist()]
    rng.shuffle(lengths)
    qkv = random_qkv(rng, sum(lengths), heads, depth)
    assert_attention(kernels_at(level), level, qkv, lengths, heads)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("tokens", [1, 11, 12, 511, 512, 513, 600, 1023, 1025])
def test_one_text(kernels_at: KernelsAtLevel, level: str, tokens: int) -> None:
    qkv = random_qkv(np.random.default_rng(tokens), tokens, 2, 64)
    assert_attention(kernels_at(level), level, qkv, [tokens], 2)


@pytest.mark.parametrize("level", LEVELS)
def test_longest_text(kernels_at: KernelsAtLevel, level: str) -> None:
    qkv = random_qkv(np.random.default_rng(0), 8200, 1, 32)
    assert_attention(kernels_at(level), level, qkv, [8, 8192], 1)


@pytest.mark.parametrize("level", LEVELS)
def test_scores_that_grow_with_the_key(kernels_at: KernelsAtLevel, level: str) -> None:
    # Scores grow from block to block of keys, so the weights of earlier blocks must shrink to zero.
    tokens, depth = 1600, 64
    rng = np.random.default_rng(1)
    q = np.abs(rng.normal(1, 0.1, (tokens, depth)))
    k = np.linspace(-3, 3, tokens)[:, None] * np.ones(depth)
    qkv = bf16(np.concatenate([q, k, rng.normal(size=(tokens, depth))], axis=1))
    assert_attention(kernels_at(level), level, qkv, [tokens], 1)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spread", [1e-30, 1e-3, 30.0, 1e4])
def test_small_and_large_values(kernels_at: KernelsAtLevel, level: str, spread: float) -> None:
    # At 1e4, scores are about 1e8, and one key gets all the weight. At 1e-30, all weights are equal.
    lengths = [40, 3, 200]
    qkv = random_qkv(np.random.default_rng(2), sum(lengths), 2, 64, spread)
    q, scale = attend(kernels_at(level), qkv, lengths, 2)
    assert np.isfinite(scale).all()
    if spread == 1e-30:
        assert (q == 128).all()
        np.testing.assert_array_equal(scale, np.float32(1e-12))
    elif spread < 1e4:
        assert_attention(kernels_at(level), level, qkv, lengths, 2)
    else:
        assert_largest_key_wins(qkv, lengths, q, scale)


def assert_largest_key_wins(qkv: Array, lengths: Sequence[int], q: Array, scale: Array) -> None:
    expected = attention(qkv, lengths, 2)
    near = np.abs((q.astype(np.float64) - 128) * scale[:, None] - expected).max(axis=1) <= 0.52 * scale
    # Scores of 1e8 have errors of several units in fp32, so the wrong one of two similar keys may be largest.
    assert near.mean() > 0.98


@pytest.mark.parametrize("level", LEVELS)
def test_weights_are_exponentials(kernels_at: KernelsAtLevel, level: str) -> None:
    # Each text has two tokens with the values 0 and 1, so its scale x 127 is the weight of the second key.
    scores = np.linspace(-20, 0, 321)  # exact in bf16: steps of 1/16
    depth = 16
    rows = np.zeros((2 * len(scores), 3 * depth), dtype=np.float32)
    rows[:, 0] = 4  # the square root of the depth
    rows[1::2, depth] = scores
    rows[1::2, 2 * depth] = 1
    _, scale = attend(kernels_at(level), bf16(rows), [2] * len(scores), 1)
    key = widened(bf16(rows))[1::2, depth].astype(np.float64)
    expected = np.exp(key) / (1 + np.exp(key))
    tolerance = tolerances.BF16_RELATIVE if level in BF16_LEVELS else tolerances.EXPONENTIAL_RELATIVE
    np.testing.assert_allclose(scale[::2].astype(np.float64) * 127, expected, rtol=tolerance)


@pytest.mark.parametrize("level", LEVELS)
def test_results_do_not_depend_on_threads_or_other_texts(kernels_at: KernelsAtLevel, level: str) -> None:
    rng = np.random.default_rng(3)
    lengths = [300, 12, 1, 77, 530, 12, 64, 5]
    qkv = random_qkv(rng, sum(lengths), 4, 64)
    together = attend(kernels_at(level), qkv, lengths, 4)
    for threads in (1, 3, 64):
        for one, other in zip(together, attend(kernels_at(level), qkv, lengths, 4, threads), strict=True):
            np.testing.assert_array_equal(one, other)
    offsets = offsets_of(lengths)
    for start, end, length in zip(offsets[:-1], offsets[1:], lengths, strict=True):
        for threads in (1, 64):
            alone = attend(kernels_at(level), qkv[start:end], [length], 4, threads)
            for one, other in zip(together, alone, strict=True):
                np.testing.assert_array_equal(one[start:end], other)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_affect_only_their_text(
    kernels_at: KernelsAtLevel, level: str, part: str, bad: float
) -> None:
    lengths, heads, depth = [20, 50, 7], 2, 32
    qkv = random_qkv(np.random.default_rng(4), sum(lengths), heads, depth)
    clean = attend(kernels_at(level), qkv, lengths, heads)
    dirty = widened(qkv).copy()
    dirty[45, ["query", "key", "value"].index(part) * heads * depth + 3] = bad
    q, scale = attend(kernels_at(level), bf16(dirty), lengths, heads)
    text = np.zeros(sum(lengths), dtype=bool)
    text[45 if part == "query" else slice(20, 70)] = True
    np.testing.assert_array_equal(q[~text], clean[0][~text])
    np.testing.assert_array_equal(scale[~text], clean[1][~text])
    if np.isnan(bad) or part == "value":
        assert not np.isfinite(scale[text]).any()
    else:  # a score of -infinity has the weight 0, so only rows with +infinity are not finite
        assert not np.isfinite(scale[text]).all()


def test_no_texts(kernels: Kernels) -> None:
    q, scale = attend(kernels, np.zeros((0, 96), dtype=np.uint16), [], 2)
    assert q.shape == (0, 32)
    assert scale.shape == (0,)


@pytest.mark.parametrize("offsets", [[0, 5, 5, 9], [1, 9], [0, 8], [0, 12], [0, 7, 3, 9], [0, -1, 9], []])
def test_invalid_offsets_are_rejected(kernels: Kernels, offsets: list[int]) -> None:
    inputs = {"qkv": np.zeros((6, 9, 16), dtype=np.uint16), "offsets": np.array(offsets, dtype=np.int32)}
    with pytest.raises(Exception, match=r"koe5.RaggedAttention \(node 'node'\): offsets must rise from 0 to"):
        kernels.run("RaggedAttention", inputs, OUTPUTS, {})


@pytest.mark.parametrize(("parts", "depth"), [(6, 8), (6, 24), (3, 0), (3, 272), (4, 32), (0, 32)])
def test_unsupported_depths_are_rejected(kernels: Kernels, parts: int, depth: int) -> None:
    inputs = {
        "qkv": np.zeros((parts, 9, depth), dtype=np.uint16),
        "offsets": np.array([0, 9], dtype=np.int32),
    }
    with pytest.raises(Exception, match="a depth that is a multiple of 16 up to 256"):
        kernels.run("RaggedAttention", inputs, OUTPUTS, {})


def test_two_dimensions_are_rejected(kernels: Kernels) -> None:
    inputs = {"qkv": np.zeros((9, 96), dtype=np.uint16), "offsets": np.array([0, 9], dtype=np.int32)}
    with pytest.raises(Exception, match=r"qkv must have the shape \[any, any, any\]"):
        kernels.run("RaggedAttention", inputs, OUTPUTS, {})
