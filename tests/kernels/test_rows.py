"""NormQuantize and PoolMean against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]
OUTPUTS = {"y": "f32", "q": "u8", "scale": "f32"}
EPSILON = 1e-5


def normed(x: Array, gain: Array, shift: Array) -> Array:
    x, gain, shift = x.astype(np.float64), gain.astype(np.float64), shift.astype(np.float64)
    mean = x.mean(axis=1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=1, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(variance + EPSILON) * gain + shift)


@pytest.mark.parametrize(("tokens", "width"), [(1, 16), (7, 64), (13, 384), (600, 1024), (3, 4096)])
def test_norm_quantize(kernels: Any, tokens: int, width: int) -> None:
    rng = np.random.default_rng(tokens)
    inputs = {
        "x": rng.normal(3, 2, (tokens, width)).astype(np.float32),
        "gain": rng.normal(1, 0.5, width).astype(np.float32),
        "shift": rng.normal(0, 0.5, width).astype(np.float32),
    }
    y, q, scale = kernels.run("NormQuantize", inputs, OUTPUTS, {"epsilon": EPSILON})
    expected = normed(*inputs.values())
    np.testing.assert_allclose(y, expected, rtol=0, atol=4e-6 * np.abs(expected).max())
    np.testing.assert_allclose(scale, np.abs(y).max(axis=1) / 127, rtol=2e-7)
    assert np.abs((q.astype(np.float64) - 128) * scale[:, None] - y).max() <= 0.50001 * scale.max()
