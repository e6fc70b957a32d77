"""NormQuantize and PoolMean compared with float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tolerances
from kernel_nodes import Kernels, assert_rounded, rotated

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


def assert_rotated(y: Array, q: Array, scale: Array) -> None:
    """Check that the 8-bit values are the rotation of y."""
    assert_rounded(q, scale, rotated(y), tolerances.ROTATION_RELATIVE * np.abs(y).max(axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("tokens", "width"), [(0, 64), (1, 64), (7, 192), (9, 128), (13, 384), (600, 1024), (3, 4096)]
)
def test_norm_quantize(each_level: Kernels, tokens: int, width: int) -> None:
    inputs = inputs_of(tokens, width)
    y, q, scale = run(each_level, inputs)
    expected = normed(inputs)
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerances.NORM_ATOL)
    assert_rotated(y, q, scale)


def test_a_large_mean_costs_few_digits(each_level: Kernels) -> None:
    # The mean is 500 times the spread. The variance as mean of squares minus square of mean would be wrong.
    inputs = inputs_of(5, 1024, mean=1000.0)
    y, _, _ = run(each_level, inputs)
    np.testing.assert_allclose(y, normed(inputs), rtol=0, atol=tolerances.NORM_LARGE_MEAN_ATOL)


@pytest.mark.parametrize("value", [0.0, 1e-40, -7.5])
def test_rows_of_one_value(each_level: Kernels, value: float) -> None:
    inputs = inputs_of(3, 64) | {"x": np.full((3, 64), value, dtype=np.float32)}
    y, q, scale = run(each_level, inputs)
    np.testing.assert_allclose(y, np.tile(inputs["shift"], (3, 1)), rtol=0, atol=tolerances.NORM_ATOL)
    assert_rotated(y, q, scale)


@pytest.mark.parametrize("place", [0, 1, 4, 15, 16, 37, 63])
def test_a_large_value_is_distributed_over_its_block(each_level: Kernels, place: int) -> None:
    """One shift is not zero. Values of its block become plus or minus an eighth of it, all others zero."""
    shift = np.zeros(128, np.float32)
    shift[place] = 80
    inputs = inputs_of(2, 128) | {"gain": np.zeros(128, np.float32), "shift": shift}
    y, q, scale = run(each_level, inputs)
    np.testing.assert_array_equal(y, np.tile(shift, (2, 1)))
    np.testing.assert_allclose(scale, 10 / 127, rtol=tolerances.ROUNDED_ONCE)
    signs = np.sign(rotated(shift[None]))
    np.testing.assert_array_equal(q, np.tile(128 + 127 * signs, (2, 1)))
    assert np.abs(signs[0, :64]).all()


def test_rows_of_zeros_quantize_to_the_zero_point(each_level: Kernels) -> None:
    inputs = inputs_of(2, 64) | {
        "shift": np.zeros(64, dtype=np.float32),
        "x": np.zeros((2, 64), dtype=np.float32),
    }
    _, q, scale = run(each_level, inputs)
    assert (q == 128).all()
    np.testing.assert_array_equal(scale, np.float32(1e-12))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_affect_only_their_row(each_level: Kernels, bad: float) -> None:
    inputs = inputs_of(20, 64)
    clean = run(each_level, inputs)
    inputs["x"][11, 40] = bad
    dirty = run(each_level, inputs)
    for one, other in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(np.delete(one, 11, axis=0), np.delete(other, 11, axis=0))
    assert not np.isfinite(dirty[2][11])


def test_results_do_not_depend_on_threads_or_other_rows(each_level: Kernels) -> None:
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
        ("x", (4, 48), "width that is a multiple of 64, but has 48"),
        ("x", (64,), r"x must have the shape \[any, any\] but has \[64\]"),
        ("gain", (32,), r"gain must have the shape \[64\] but has \[32\]"),
        ("shift", (64, 1), r"shift must have the shape \[64\] but has \[64, 1\]"),
    ],
)
def test_other_shapes_are_rejected(kernels: Kernels, name: str, shape: tuple[int, ...], message: str) -> None:
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
    # A text alone has a bit-identical mean.
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
def test_pool_mean_rejects_invalid_offsets(kernels: Kernels, offsets: list[int]) -> None:
    with pytest.raises(
        Exception, match=r"koe5.PoolMean \(node 'node'\): offsets must rise from 0 to .* 4, with"
    ):
        pool(kernels, np.zeros((4, 32), dtype=np.float32), np.array(offsets, dtype=np.int32))
