"""Rotations are orthogonal, spread large values, and match the order of the fused kernels."""

import numpy as np
import pytest
from kernel_nodes import rotated as rotated_by_kernels
from koe5_export.rotate import rotated, rotated_rows, rotation
from tolerances import SMOOTHING_RELATIVE

RNG = np.random.default_rng(0)
BLOCKS = {1024: 64, 384: 64, 64: 64, 96: 32, 48: 16, 24: 8, 12: 4, 6: 2}


@pytest.mark.parametrize(("width", "block"), BLOCKS.items())
def test_the_block_is_the_largest_power_of_two_that_divides_the_width(width, block):
    matrix = rotation(width)
    assert matrix.shape == (block, block)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(block), atol=1e-6, rtol=0)
    # All entries have the same magnitude, so one large channel is distributed evenly.
    np.testing.assert_allclose(np.abs(matrix), block**-0.5, rtol=1e-6)


def test_an_odd_width_is_not_rotated():
    assert rotation(15) is None
    x = RNG.standard_normal((3, 15), dtype=np.float32)
    assert rotated(x, None) is x
    assert rotated_rows(x, None) is x


@pytest.mark.parametrize("block", [64, 16, 4])
def test_a_common_mean_is_spread_evenly(block):
    found = rotated(np.full((1, block), 3, np.float32), rotation(block))
    np.testing.assert_allclose(np.abs(found), 3, rtol=1e-6)


def test_rotating_both_factors_keeps_the_product():
    x = RNG.standard_normal((5, 192), dtype=np.float32)
    weight = RNG.standard_normal((192, 7), dtype=np.float32)
    matrix, expected = rotation(192), x @ weight
    found = rotated(x, matrix) @ rotated_rows(weight, matrix)
    np.testing.assert_allclose(found, expected, atol=SMOOTHING_RELATIVE * np.abs(expected).max(), rtol=0)


def test_the_fused_kernels_rotate_in_the_same_order():
    x = RNG.standard_normal((3, 128), dtype=np.float32)
    expected = rotated_by_kernels(x)
    np.testing.assert_allclose(rotated(x, rotation(128)), expected, atol=1e-5, rtol=0)
