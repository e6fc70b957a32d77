"""NormQuantize and PoolMean against float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tolerances
from kernel_nodes import Kernels

Array = npt.NDArray[Any]
OUTPUTS = {"y": "f32", "q": "u8", "scale": "f32"}
EPSILON = 1e-5


def inputs_of(tokens: int, width: int, mean: float = 3.0) -> dict[str, Array]:
    rng = np.random.default_rng([tokens, width])
    return {
        "x": rng.normal(mean, 2, (tokens, width)).astype(np.float32),
        "gain": rng.normal(1, 0.5, width).astype(np.float32),
        "shift": rng.normal(0, 0.5, width).astype(np.float32),
    }


def normed(inputs: dict[str, Array]) -> Array:
    x, gain, shift = (array.astype(np.float64) for array in inputs.values())
    mean = x.mean(axis=1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=1, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(variance + EPSILON) * gain + shift)


def run(kernels: Kernels, inputs: dict[str, Array], threads: int = 2) -> list[Array]:
    return kernels.run("NormQuantize", inputs, OUTPUTS, {"epsilon": EPSILON}, threads=threads)


def assert_quantised(y: Array, q: Array, scale: Array) -> None:
    """Scale and steps are the stock graph's, but for values that lie on a half as nearly as fp32 can tell."""
    np.testing.assert_allclose(
        scale, np.maximum(np.abs(y).max(axis=1) / 127, 1e-12), rtol=tolerances.ROUNDED_ONCE
    )
    steps = y.astype(np.float64) / scale[:, None]
    assert np.abs(steps - (q.astype(np.float64) - 128)).max() <= 0.5 + 127 * tolerances.ROUNDED_ONCE


@pytest.mark.parametrize(
    ("tokens", "width"), [(0, 64), (1, 16), (7, 48), (9, 64), (13, 384), (600, 1024), (3, 4096)]
)
def test_norm_quantize(each_level: Kernels, tokens: int, width: int) -> None:
    inputs = inputs_of(tokens, width)
    y, q, scale = run(each_level, inputs)
    expected = normed(inputs)
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerances.NORM_ATOL)
    if tokens:
        assert_quantised(y, q, scale)


def test_a_large_mean_costs_few_digits(each_level: Kernels) -> None:
    # The mean is 500 times the spread: a variance from squares would be wrong in its second digit.
    inputs = inputs_of(5, 1024, mean=1000.0)
    y, _, _ = run(each_level, inputs)
    np.testing.assert_allclose(y, normed(inputs), rtol=0, atol=tolerances.NORM_LARGE_MEAN_ATOL)


@pytest.mark.parametrize("value", [0.0, 1e-40, -7.5])
def test_rows_of_one_value(each_level: Kernels, value: float) -> None:
    inputs = inputs_of(3, 64) | {"x": np.full((3, 64), value, dtype=np.float32)}
    y, q, scale = run(each_level, inputs)
    np.testing.assert_allclose(y, np.tile(inputs["shift"], (3, 1)), rtol=0, atol=tolerances.NORM_ATOL)
    assert_quantised(y, q, scale)


def test_rows_of_zeros_quantise_to_the_zero_point(each_level: Kernels) -> None:
    inputs = inputs_of(2, 64) | {
        "shift": np.zeros(64, dtype=np.float32),
        "x": np.zeros((2, 64), dtype=np.float32),
    }
    _, q, scale = run(each_level, inputs)
    assert (q == 128).all()
    np.testing.assert_array_equal(scale, np.float32(1e-12))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(each_level: Kernels, bad: float) -> None:
    inputs = inputs_of(20, 64)
    clean = run(each_level, inputs)
    inputs["x"][11, 40] = bad
    dirty = run(each_level, inputs)
    for one, other in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(np.delete(one, 11, axis=0), np.delete(other, 11, axis=0))
    assert not np.isfinite(dirty[2][11])


def test_threads_and_other_rows_do_not_matter(each_level: Kernels) -> None:
    inputs = inputs_of(50, 384)
    together = run(each_level, inputs, threads=1)
    for threads in (2, 5):
        for one, other in zip(together, run(each_level, inputs, threads=threads), strict=True):
            np.testing.assert_array_equal(one, other)
    part = run(each_level, inputs | {"x": inputs["x"][13:20]})
    for one, other in zip(together, part, strict=True):
        np.testing.assert_array_equal(one[13:20], other)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (4, 24), "width that is a multiple of 16 and has 24"),
        ("x", (64,), r"x must have the shape \[any, any\] and has \[64\]"),
        ("gain", (32,), r"gain must have the shape \[64\] and has \[32\]"),
        ("shift", (64, 1), r"shift must have the shape \[64\] and has \[64, 1\]"),
    ],
)
def test_other_shapes_are_refused(kernels: Kernels, name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(Exception, match=r"koe5.NormQuantize \(node 'node'\): .*" + message):
        run(kernels, inputs_of(4, 64) | {name: np.zeros(shape, dtype=np.float32)})


def test_an_absent_attribute_is_an_error(kernels: Kernels) -> None:
    with pytest.raises(Exception, match=r"koe5.NormQuantize \(node 'node'\): .*epsilon"):
        kernels.run("NormQuantize", inputs_of(4, 64), OUTPUTS, {})


def pool(kernels: Kernels, y: Array, offsets: Array) -> Array:
    return kernels.run("PoolMean", {"y": y, "offsets": offsets}, {"mean": "f32"}, {})[0]


@pytest.mark.parametrize(
    ("width", "lengths"), [(16, [1]), (64, [3, 1, 600]), (1024, [12] * 40), (400, [1, 8192])]
)
def test_pool_mean(each_level: Kernels, width: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(width)
    y = rng.normal(0.5, 1, (sum(lengths), width)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    expected = [y[a:b].astype(np.float64).mean(axis=0) for a, b in pairwise(offsets)]
    np.testing.assert_allclose(pool(each_level, y, offsets), expected, rtol=0, atol=tolerances.POOL_ATOL)
    # A text alone has the same mean, to the last bit.
    np.testing.assert_array_equal(
        pool(each_level, y[offsets[-2] :], np.array([0, lengths[-1]], dtype=np.int32))[0],
        pool(each_level, y, offsets)[-1],
    )


def test_pool_mean_keeps_nan_in_its_text(each_level: Kernels) -> None:
    y = np.ones((9, 32), dtype=np.float32)
    y[4, 7] = np.nan
    found = pool(each_level, y, np.array([0, 3, 6, 9], dtype=np.int32))
    assert np.isnan(found[1, 7])
    assert (np.delete(found, 1, axis=0) == 1).all()
    assert (np.delete(found[1], 7) == 1).all()


def test_pool_mean_of_no_texts(kernels: Kernels) -> None:
    assert pool(kernels, np.zeros((0, 32), dtype=np.float32), np.array([0], dtype=np.int32)).shape == (0, 32)


@pytest.mark.parametrize("offsets", [[0, 3], [0, 0, 4], [0, 5], [4]])
def test_pool_mean_refuses_bad_offsets(kernels: Kernels, offsets: list[int]) -> None:
    with pytest.raises(
        Exception, match=r"koe5.PoolMean \(node 'node'\): offsets must rise from 0 to .* 4, with"
    ):
        pool(kernels, np.zeros((4, 32), dtype=np.float32), np.array(offsets, dtype=np.int32))
