import numpy as np
import pytest
from koe5_export.rounding import DAMPING, Compensation, round_blocks, round_columns

RNG = np.random.default_rng(0)


def test_columns_are_rounded_to_the_nearest_step():
    weight = RNG.standard_normal((50, 20), dtype=np.float32) * np.logspace(-3, 3, 20, dtype=np.float32)
    rounded = round_columns(weight)
    assert rounded.integers.dtype == np.int8
    assert (np.abs(rounded.integers).max(axis=0) == 127).all()
    assert (np.abs(rounded.weight - weight) <= rounded.scale * 0.5001).all()


@pytest.mark.parametrize(("bits", "highest"), [(8, 127), (4, 7)])
def test_each_block_has_its_own_scale(bits, highest):
    """The relative error is small in all blocks, although their magnitudes differ."""
    sizes = np.repeat(np.logspace(-3, 3, 4, dtype=np.float32), 16)[:, None]
    weight = RNG.standard_normal((64, 5), dtype=np.float32) * sizes
    rounded = round_blocks(weight, bits, 16)
    assert rounded.scale.shape == (4, 5)
    assert np.abs(rounded.integers).max() == highest
    error = np.linalg.norm((rounded.weight - weight).reshape(4, -1), axis=1)
    assert (error < 1.5 / highest * np.linalg.norm(weight.reshape(4, -1), axis=1)).all()


def test_four_bits_clip_to_reduce_the_error():
    weight = RNG.standard_normal((128, 50), dtype=np.float32)
    full = np.abs(weight).max(axis=0) / 7
    nearest = np.clip(np.rint(weight / full), -7, 7) * full
    found = round_blocks(weight, 4, 128).weight
    assert np.square(found - weight).sum() < 0.97 * np.square(nearest - weight).sum()


def test_a_column_of_zeros_stays_zero():
    rounded = round_columns(np.zeros((4, 3), np.float32))
    assert not rounded.integers.any()
    assert (rounded.scale > 0).all()


@pytest.mark.parametrize("channels", [16, 200])
def test_compensation_reduces_the_error_of_products(channels):
    """With correlated inputs, such as hidden states, the error drops by a third or more."""
    mixing = RNG.standard_normal((channels // 4, channels), dtype=np.float32)
    inputs = RNG.standard_normal((2000, channels // 4), dtype=np.float32) @ mixing
    inputs += 0.05 * RNG.standard_normal(inputs.shape, dtype=np.float32)
    weight = RNG.standard_normal((channels, 30), dtype=np.float32)

    def error(rounded):
        return np.square(inputs @ (rounded.weight - weight)).mean()

    compensation = Compensation.of(inputs.T @ inputs)
    assert error(round_columns(weight, compensation)) < 0.67 * error(round_columns(weight))
    four = round_blocks(weight, 4, channels // 2, compensation)
    assert error(four) < 0.67 * error(round_blocks(weight, 4, channels // 2))


def test_compensation_works_with_fewer_tokens_than_channels():
    inputs = RNG.standard_normal((5, 64), dtype=np.float32)
    weight = RNG.standard_normal((64, 8), dtype=np.float32)
    rounded = round_columns(weight, Compensation.of(inputs.T @ inputs))
    assert np.isfinite(rounded.scale).all()
    assert rounded.integers.any()


@pytest.mark.parametrize("covariance", [np.zeros((8, 8), np.float32), np.eye(8, dtype=np.float32)])
def test_compensation_without_correlation_rounds_to_nearest(covariance):
    weight = RNG.standard_normal((8, 5), dtype=np.float32)
    found, expected = round_columns(weight, Compensation.of(covariance)), round_columns(weight)
    np.testing.assert_array_equal(found.integers, expected.integers)
    np.testing.assert_array_equal(found.scale, expected.scale)


def test_compensation_matches_a_simple_implementation_of_gptq():
    """The simple implementation processes one row at a time, in float64, in the order of `Compensation`."""
    channels = 300
    inputs = RNG.standard_normal((900, channels)) * np.linspace(3, 1, channels)
    inputs += RNG.standard_normal((900, 1))
    gram = inputs.T @ inputs
    order = np.argsort(-np.diag(gram))
    gram = gram[np.ix_(order, order)]
    weight = RNG.standard_normal((channels, 6)).astype(np.float32)
    rounded = round_columns(weight, Compensation.of(gram.astype(np.float32)))
    integers, scale = rounded.integers, rounded.scale

    damped = gram + DAMPING * np.diag(gram).mean() * np.eye(channels)
    rest, expected = (weight / scale).astype(np.float64), np.empty_like(integers)
    inverse = np.linalg.inv(damped)
    for row in range(channels):
        # Change the later rows such that they compensate best for the error of this row (GPTQ's update).
        expected[row] = np.clip(np.rint(rest[row]), -127, 127)
        error = (rest[row] - expected[row]) / inverse[row, row]
        rest[row:] -= np.outer(inverse[row:, row], error)
        inverse -= np.outer(inverse[:, row], inverse[row]) / inverse[row, row]
    assert (integers == expected).mean() > 0.98
