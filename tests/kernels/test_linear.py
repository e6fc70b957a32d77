"""ProjectQkv, ProjectAddNorm and ProjectGelu compared with float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tolerances
from kernel_nodes import LEVELS, assert_rounded, fed, node_model, open_session, rotated

Array = npt.NDArray[Any]
EPSILON = 1e-5
MIDDLE = 128
WIDTHS = [(1024, 4096), (384, 1536), (64, 128), (192, 320), (448, 64)]
"""Hidden and intermediate size: XLM-R-large, MiniLM, the tiny artifact, and odd multiples of 64."""
QKV_WIDTHS = [1024, 384, 64, 48, 16, 112]
"""Hidden sizes, some of which do not fill a tile."""
TOKENS = [1, 2, 5, 6, 7, 15, 16, 17, 31, 32, 33, 47, 48, 49, 95, 129, 600]

QKV = {"qkv": "bf16"}
NORMED = {"y": "f32", "q": "u8", "scale": "f32"}
QUANTIZED = {"q": "u8", "scale": "f32"}
WEIGHTS = {
    "ProjectQkv": ("weight_q", "weight_k", "weight_v", "scale_q", "scale_k", "scale_v"),
    "ProjectAddNorm": ("weight", "weight_scale"),
    "ProjectGelu": ("weight", "weight_scale"),
}
OUTPUTS = {"ProjectQkv": QKV, "ProjectAddNorm": NORMED, "ProjectGelu": QUANTIZED}
ATTRIBUTES: Mapping[str, dict[str, Any]] = {
    "ProjectQkv": {},
    "ProjectAddNorm": {"epsilon": EPSILON},
    "ProjectGelu": {},
}


def depth_of(width: int) -> int:
    """Return the depth of heads for a hidden size: the first of 64, 48, 32 and 16 that divides it."""
    return next(depth for depth in (64, 48, 32, 16) if width % depth == 0)


def project(kernels: Any, op: str, inputs: Mapping[str, Array], **options: Any) -> list[Array]:
    """Run a linear operator and return its outputs. Q, K and V are joined to one f32[T, 3 N]."""
    attributes = options.pop("attributes", ATTRIBUTES[op])
    if op == "ProjectQkv":
        width = inputs["weight_q"].shape[1]
        attributes = {"heads": width // depth_of(width)} | attributes
    found = list(kernels.run(op, inputs, OUTPUTS[op], attributes, WEIGHTS[op], **options))
    if op == "ProjectQkv":
        assert found[0].shape == (3 * attributes["heads"], len(inputs["q"]), width // attributes["heads"])
        found = [found[0].transpose(1, 0, 2).reshape(len(inputs["q"]), 3 * width)]
    return found


def activations(rng: np.random.Generator, tokens: int, k: int) -> tuple[Array, Array]:
    q = rng.integers(0, 256, (tokens, k), dtype=np.uint8)
    return q, rng.uniform(0.001, 0.05, tokens).astype(np.float32)


def weight(rng: np.random.Generator, k: int, n: int) -> tuple[Array, Array]:
    scale = rng.uniform(0.5, 2, n) / (74 * 74 * 0.02 * math.sqrt(k))
    return rng.integers(-128, 128, (k, n), dtype=np.int8), scale.astype(np.float32)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def qkv_inputs(tokens: int, width: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng([seed, tokens, width])
    q, scale = activations(rng, tokens, width)
    weights, scales = zip(*(weight(rng, width, width) for _ in "qkv"), strict=True)
    named = {f"weight_{part}": w for part, w in zip("qkv", weights, strict=True)}
    named |= {f"scale_{part}": s for part, s in zip("qkv", scales, strict=True)}
    return {"q": q, "scale": scale, **named, "bias": normal(rng, 3 * width)}


def gelu_inputs(tokens: int, k: int, n: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng([seed, tokens, k, n])
    a, a_scale = activations(rng, tokens, k)
    w, w_scale = weight(rng, k, n)
    named = {"a": a, "a_scale": a_scale, "weight": w, "weight_scale": w_scale, "bias": normal(rng, n)}
    return named | {"factors": np.exp(normal(rng, 64))}


def add_norm_inputs(tokens: int, k: int, n: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng([seed, tokens, k, n, 1])
    named = gelu_inputs(tokens, k, n, seed)
    bias = named.pop("bias")
    del named["factors"]
    named |= {"x": normal(rng, tokens, n), "skip": normal(rng, n), "bias": bias}
    return named | {"gain": normal(rng, n), "shift": normal(rng, n)}


def product(q: Array, scale: Array, w: Array, w_scale: Array) -> Array:
    """Return scale * (q - 128) @ (w * w_scale) in float64; the integer sums are exact."""
    sums = (q.astype(np.float64) - MIDDLE) @ w.astype(np.float64)
    return np.asarray(sums * w_scale.astype(np.float64) * scale.astype(np.float64)[:, None])


def exact_gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * np.vectorize(math.erfc)(-x / math.sqrt(2)))


def exact_normed(inputs: Mapping[str, Array]) -> Array:
    a, a_scale, w, w_scale, x, skip, bias, gain, shift = inputs.values()
    h = x.astype(np.float64) * skip + product(a, a_scale, w, w_scale) + bias
    distance = h - h.mean(axis=1, keepdims=True)
    return np.asarray(distance / np.sqrt((distance**2).mean(axis=1, keepdims=True) + EPSILON) * gain + shift)


def assert_bf16(found: Array, expected: Array) -> None:
    """Check that each value differs from the exact one by at most half a bf16 step plus fp32 rounding."""
    half_step = np.abs(expected) * 2.0**-8
    slack = tolerances.LINEAR_FP32_RELATIVE * np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(found - expected) <= half_step + slack).all()


def assert_qkv(found: Array, inputs: Mapping[str, Array]) -> None:
    q, scale, *weights, bias = inputs.values()
    parts = [product(q, scale, w, s) for w, s in zip(weights[:3], weights[3:], strict=True)]
    assert_bf16(found, np.concatenate(parts, axis=1) + bias)


def assert_normed(found: list[Array], inputs: Mapping[str, Array]) -> None:
    y, q, scale = found
    expected = exact_normed(inputs)
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerances.NORMED_RELATIVE * np.abs(expected).max())
    assert_rounded(q, scale, rotated(y), tolerances.ROTATION_RELATIVE * np.abs(y).max(axis=1, keepdims=True))


def assert_gelu(found: list[Array], inputs: Mapping[str, Array]) -> None:
    """Compare GELU outputs. The rotation distributes the fp16 rounding of a value over its block of 64."""
    a, a_scale, w, w_scale, bias, factors = inputs.values()
    exact = exact_gelu(product(a, a_scale, w, w_scale) + bias)
    each = np.tile(factors.astype(np.float64), exact.shape[1] // 64)
    expected = rotated(exact * each)
    stored = (np.abs(exact) * tolerances.GELU_FP16_RELATIVE + tolerances.GELU_ATOL) * each
    of_block = np.repeat(stored.reshape(len(stored), -1, 64).sum(axis=2), 64, axis=1) / 8
    slack = of_block + np.abs(expected) * tolerances.GELU_FP16_RELATIVE + tolerances.GELU_ATOL
    assert_rounded(*found, expected, slack)


@pytest.mark.parametrize("width", QKV_WIDTHS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_project_qkv(kernels: Any, width: int, tokens: int) -> None:
    inputs = qkv_inputs(tokens, width)
    [found] = project(kernels, "ProjectQkv", inputs)
    assert_qkv(found, inputs)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_project_add_norm(kernels: Any, widths: tuple[int, int], tokens: int) -> None:
    hidden, intermediate = widths
    for k in (hidden, intermediate):
        inputs = add_norm_inputs(tokens, k, hidden)
        assert_normed(project(kernels, "ProjectAddNorm", inputs), inputs)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_project_gelu(kernels: Any, widths: tuple[int, int], tokens: int) -> None:
    inputs = gelu_inputs(tokens, *widths)
    assert_gelu(project(kernels, "ProjectGelu", inputs), inputs)


@pytest.mark.parametrize("seed", range(20))
def test_random_shapes(each_level: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens, k, n = (int(rng.integers(1, 200)), 4 * int(rng.integers(1, 160)), 64 * int(rng.integers(1, 10)))
    threads = int(rng.integers(1, 5))
    gelu = gelu_inputs(tokens, k, n, seed)
    assert_gelu(project(each_level, "ProjectGelu", gelu, threads=threads), gelu)
    normed = add_norm_inputs(tokens, k, n, seed)
    assert_normed(project(each_level, "ProjectAddNorm", normed, threads=threads), normed)


@pytest.mark.parametrize("times", [1e-4, 1e3, 1e5, 1e9])
def test_gelu_of_small_and_large_values(each_level: Any, times: float) -> None:
    # fp16 ends at 65,504, so values are stored divided by 256. Values that overflow must not become finite.
    inputs = gelu_inputs(20, 64, 128)
    inputs["a_scale"] = inputs["a_scale"] * np.float32(times)
    inputs["factors"] /= inputs["factors"].max()  # values above 2e6 overflow after the rotation
    largest = exact_gelu(product(*list(inputs.values())[:4])).max(axis=1)
    found = project(each_level, "ProjectGelu", inputs)
    if times < 1e9:
        assert_gelu(found, inputs)
    else:
        assert largest.min() > 1.7e7
        assert not np.isfinite(found[1]).any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("q", "w"), [(255, -128), (255, 127), (0, -128), (0, 127), (128, 127)])
@pytest.mark.parametrize("tokens", [3, 40])
def test_sums_do_not_saturate(kernels_at: Any, level: str, q: int, w: int, tokens: int) -> None:
    # The bias cancels the expected sum exactly in fp32, so that an error of one unit is visible.
    k, n = 4096, 96
    expected = np.float32((q - 128) * w * k)
    inputs = {
        "q": np.full((tokens, k), q, np.uint8),
        "scale": np.ones(tokens, np.float32),
        **{f"weight_{part}": np.full((k, n), w, np.int8) for part in "qkv"},
        **{f"scale_{part}": np.ones(n, np.float32) for part in "qkv"},
        "bias": np.full(3 * n, -expected),
    }
    [found] = project(kernels_at(level), "ProjectQkv", inputs)
    assert (found == 0).all()


INPUTS = {
    "ProjectQkv": lambda tokens: qkv_inputs(tokens, 256),
    "ProjectAddNorm": lambda tokens: add_norm_inputs(tokens, 320, 192),
    "ProjectGelu": lambda tokens: gelu_inputs(tokens, 128, 576),
}
ROWS = {"q", "scale", "a", "a_scale", "x"}
"""Inputs with one row per token."""


def rows_of(inputs: Mapping[str, Array], rows: slice) -> dict[str, Array]:
    return {name: array[rows] if name in ROWS else array for name, array in inputs.items()}


@pytest.mark.parametrize("op", INPUTS)
def test_results_do_not_depend_on_threads(each_level: Any, op: str) -> None:
    for tokens in (3, 50, 333):
        inputs = INPUTS[op](tokens)
        alone = project(each_level, op, inputs, threads=1)
        for threads in (2, 3, 7):
            for one, other in zip(alone, project(each_level, op, inputs, threads=threads), strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("op", INPUTS)
def test_results_do_not_depend_on_other_rows(each_level: Any, op: str) -> None:
    inputs = INPUTS[op](150)
    together = project(each_level, op, inputs)
    for rows in (slice(0, 1), slice(7, 40), slice(149, 150), slice(20, 133)):
        for whole, part in zip(together, project(each_level, op, rows_of(inputs, rows)), strict=True):
            np.testing.assert_array_equal(whole[rows], part)


@pytest.mark.parametrize("op", INPUTS)
def test_levels_give_identical_results(
    kernels: Any, kernels_at: Any, levels: tuple[str, ...], op: str
) -> None:
    for tokens in (5, 100):
        inputs = INPUTS[op](tokens)
        best = project(kernels, op, inputs)
        for level in levels:
            for one, other in zip(best, project(kernels_at(level), op, inputs), strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("largest", [64, 65, 127])
def test_pairs_of_weights_that_fit_in_16_bits_and_that_do_not(
    kernels: Any, each_level: Any, largest: int
) -> None:
    rng = np.random.default_rng(largest)
    for k in (4, 60, 4096):
        inputs = gelu_inputs(7, k, 64)
        inputs["a"] = rng.choice(np.array([0, 255], np.uint8), (7, k))
        inputs["weight"] = rng.choice(np.array([-largest - 1, largest], np.int8), (k, 64))
        assert_gelu(found := project(each_level, "ProjectGelu", inputs), inputs)
        for one, other in zip(project(kernels, "ProjectGelu", inputs), found, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("op", INPUTS)
def test_no_tokens(kernels: Any, op: str) -> None:
    for found in project(kernels, op, rows_of(INPUTS[op](2), slice(0, 0))):
        assert len(found) == 0


@pytest.mark.parametrize("op", INPUTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_affect_only_their_row(each_level: Any, op: str, bad: float) -> None:
    inputs = INPUTS[op](50)
    clean = project(each_level, op, inputs)
    for name in ROWS.intersection(inputs):
        if inputs[name].dtype != np.float32:
            continue
        dirty = {key: array.copy() for key, array in inputs.items()}
        dirty[name][17] = bad
        found = project(each_level, op, dirty)
        for one, other in zip(clean, found, strict=True):
            np.testing.assert_array_equal(np.delete(one, 17, axis=0), np.delete(other, 17, axis=0))
        assert not np.isfinite(found[0 if op == "ProjectQkv" else -1][17]).any()


@pytest.mark.parametrize("op", ["ProjectAddNorm", "ProjectGelu"])
def test_denormals(each_level: Any, op: str) -> None:
    inputs = INPUTS[op](20)
    for name in ("a_scale", "x"):
        if name in inputs:
            inputs[name] = np.full_like(inputs[name], 1e-40)
    inputs["bias"] = np.full_like(inputs["bias"], 1e-42)
    found = project(each_level, op, inputs)
    assert np.isfinite(found[-1]).all()
    (assert_gelu if op == "ProjectGelu" else assert_normed)(found, inputs)


def test_zero_rows(each_level: Any) -> None:
    inputs = gelu_inputs(9, 64, 64)
    inputs["a"][:] = MIDDLE
    inputs["bias"][:] = 0
    q, scale = project(each_level, "ProjectGelu", inputs)
    assert (q == MIDDLE).all()
    np.testing.assert_array_equal(scale, np.float32(1e-12))


def test_gelu_over_its_range(each_level: Any) -> None:
    # The product is 0, so GELU's input is the bias: near 0, at its minimum, at its limits and far beyond.
    n = 4096
    x = np.concatenate([np.linspace(-8, 8, n - 6), [-0.0, 0.0, 1e-30, -1e-30, -1e6, 0.75]]).astype(np.float32)
    inputs = gelu_inputs(1, 64, n) | {"bias": x}
    inputs["a"][:] = MIDDLE
    assert_gelu(project(each_level, "ProjectGelu", inputs), inputs)


@pytest.mark.parametrize(
    ("k", "n", "message"), [(6, 16, "a multiple of 4 rows"), (64, 24, "a multiple of 16 columns")]
)
def test_unsupported_shapes_are_rejected(kernels: Any, k: int, n: int, message: str) -> None:
    with pytest.raises(Exception, match=message):
        project(kernels, "ProjectGelu", gelu_inputs(2, k, n))


@pytest.mark.parametrize("heads", [0, -1, 3, 8])
def test_invalid_heads_are_rejected(kernels: Any, heads: int) -> None:
    with pytest.raises(Exception, match="heads must divide the weights' columns into multiples of 16"):
        project(kernels, "ProjectQkv", qkv_inputs(2, 64), attributes={"heads": heads})


@pytest.mark.parametrize(("op", "make"), [("ProjectGelu", gelu_inputs), ("ProjectAddNorm", add_norm_inputs)])
def test_outputs_must_be_a_multiple_of_64(kernels: Any, op: str, make: Any) -> None:
    with pytest.raises(Exception, match="a multiple of 64, but has 48"):
        project(kernels, op, make(2, 64, 48))


def test_factors_must_have_64_values(kernels: Any) -> None:
    inputs = gelu_inputs(2, 64, 128)
    inputs["factors"] = np.ones(128, np.float32)
    with pytest.raises(Exception, match=r"factors must have the shape \[64\]"):
        project(kernels, "ProjectGelu", inputs)


def test_activations_of_another_width_are_rejected(kernels: Any) -> None:
    inputs = gelu_inputs(2, 64, 64)
    inputs["a"] = inputs["a"][:, :32]
    with pytest.raises(Exception, match=r"activations must have the shape \[any, 64\]"):
        project(kernels, "ProjectGelu", inputs)


def test_weights_must_be_constant(kernels: Any) -> None:
    with pytest.raises(Exception, match="weight must be a constant"):
        kernels.run("ProjectGelu", gelu_inputs(2, 64, 64), QUANTIZED, {}, ())


def resident_kib(path: Path) -> int:
    """Return the resident KiB of a file's mappings in this process."""
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    starts = [i for i, line in enumerate(lines) if line.endswith(str(path))]
    assert starts
    return sum(int(next(line for line in lines[i:] if line.startswith("Rss:")).split()[1]) for i in starts)


def test_file_pages_of_packed_weights_are_released(kernels: Any, tmp_path: Path) -> None:
    inputs = gelu_inputs(40, 1024, 4096)
    attributes = ATTRIBUTES["ProjectGelu"]
    model = onnx.load_model_from_string(
        node_model("ProjectGelu", inputs, QUANTIZED, attributes, WEIGHTS["ProjectGelu"])
    )
    external = {"location": "weights", "size_threshold": 1 << 20, "save_as_external_data": True}
    onnx.save_model(model, tmp_path / "model.onnx", **external)
    session = open_session(kernels.library, str(tmp_path / "model.onnx"))
    assert_gelu(session.run(None, fed(inputs, WEIGHTS["ProjectGelu"])), inputs)
    assert resident_kib(tmp_path / "weights") <= 64
