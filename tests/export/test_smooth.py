import math
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from koe5_export.calibrate import Calibration, gelu
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import read_contract
from koe5_export.graph import write_encoder
from koe5_export.precision import PRECISIONS
from koe5_export.reference import embed_reference
from koe5_export.rotate import rotated, rotated_rows, rotation
from koe5_export.rounding import round_columns
from koe5_export.smooth import Strengths, _dealt, _inner_divisors, smooth
from koe5_export.weights import Norm
from koe5_export.writer import GraphWriter
from tolerances import FP32_MAX_ABS_DIFF, SMOOTHING_RELATIVE

from koe5_onnx import Tokenizer
from koe5_onnx.engine.graphs import OUTPUT

STRENGTHS = Strengths(attention=0.8, context=0.4, ffn=0.6, gelu=0.4)
TEXTS = ["서울은 대한민국의 수도이다.", "A longer sentence, with <pad> inside it.", "", "네"]


@pytest.fixture(scope="module")
def checkpoint(seeded):
    return Checkpoint(seeded, "x", None)


@pytest.fixture
def calibration(checkpoint):
    tokenizer = Tokenizer(checkpoint.tokenizer, 512)
    return Calibration(checkpoint, tokenizer.encode(TEXTS).ids)


def test_gelu_is_exact_enough():
    x = np.linspace(-10, 10, 4001, dtype=np.float32)
    exact = [value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x.astype(float)]
    np.testing.assert_allclose(gelu(x), exact, atol=1e-6, rtol=0)


def test_the_numpy_encoder_agrees_with_pytorch(checkpoint, calibration):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    norm = checkpoint.embedding_norm()
    for number in range(checkpoint.config.layers):
        layer = checkpoint.layer(number)
        calibration.advance(norm, layer)
        norm = layer.output_norm
    found = calibration._norm(calibration._summed, norm)
    encoder = AutoModel.from_pretrained(checkpoint.folder, add_pooling_layer=False).eval()
    ids = Tokenizer(checkpoint.tokenizer, 512).encode(TEXTS).ids
    with torch.inference_mode():
        expected = [
            encoder(input_ids=torch.tensor(row[None].astype(np.int64))).last_hidden_state[0].numpy()
            for row in ids
        ]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=FP32_MAX_ABS_DIFF, rtol=0)


def test_inputs_of_linear_layers_agree_with_pytorch(checkpoint, calibration):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(checkpoint.folder, add_pooling_layer=False).eval()
    seen = {}
    for number, layer in enumerate(encoder.encoder.layer):
        linears = {
            "attention": layer.attention.self.query,
            "context": layer.attention.output.dense,
            "ffn": layer.intermediate.dense,
            "gelu": layer.output.dense,
        }
        for name, linear in linears.items():
            parts = seen.setdefault((number, name), [])
            linear.register_forward_pre_hook(lambda _, inputs, parts=parts: parts.append(inputs[0][0]))
    with torch.inference_mode():
        for row in Tokenizer(checkpoint.tokenizer, 512).encode(TEXTS).ids:
            encoder(input_ids=torch.tensor(row[None].astype(np.int64)))

    norm = checkpoint.embedding_norm()
    for number in range(checkpoint.config.layers):
        layer = checkpoint.layer(number)
        found = calibration.advance(norm, layer)
        for name in ("attention", "context", "ffn", "gelu"):
            x = torch.cat(seen[number, name]).numpy().astype(np.float64)
            _close(getattr(found, name).peak, (x**8).mean(axis=0) ** (1 / 8))
            _close(getattr(found, name).mean, x.mean(axis=0))
            _close(getattr(found, name).covariance, np.cov(x.T, bias=True) * len(x))
        norm = layer.output_norm


def test_smoothing_keeps_all_products(checkpoint, calibration):
    """On random hidden states, the outputs of linear layers are the same before and after smoothing."""
    layer, norm = checkpoint.layer(0), checkpoint.embedding_norm()
    smoothed = smooth(norm, layer, calibration.advance(norm, layer), STRENGTHS, checkpoint.config.heads)
    normal = np.random.default_rng(0).standard_normal((7, checkpoint.config.hidden), dtype=np.float32)
    x = _affine(normal, norm)
    a = _affine(normal, smoothed.input_norm)
    for name in ("query", "key"):
        before, after = getattr(layer, name), getattr(smoothed, name)
        _close(_apply(a, after), x @ before.weight + before.bias)
    _close(a * smoothed.attention_skip, x + layer.output.bias)
    values = x @ layer.value.weight + layer.value.bias
    smoothed_values = _apply(a, smoothed.value)
    _close(smoothed_values @ smoothed.output.weight, values @ layer.output.weight)
    y, b = _affine(normal, layer.attention_norm), _affine(normal, smoothed.attention_norm)
    up, found = y @ layer.up.weight + layer.up.bias, _apply(b, smoothed.up)
    _close(np.sort(found), np.sort(up))  # smoothing also reorders the inner channels
    _close(b * smoothed.ffn_skip, y + layer.down.bias)
    _close(_apply(gelu(found), smoothed.down), gelu(up) @ layer.down.weight + layer.down.bias)


@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_a_smoothed_encoder_gives_the_same_embeddings(checkpoint, calibration, tmp_path, strength):
    """All layers of the graph are smoothed, but not quantized."""

    def smoothed():
        norm = checkpoint.embedding_norm()
        for number in range(checkpoint.config.layers):
            layer = checkpoint.layer(number)
            inputs, heads = calibration.advance(norm, layer), checkpoint.config.heads
            yield smooth(norm, layer, inputs, Strengths(strength, strength, strength, strength), heads)
            norm = layer.output_norm

    contract = read_contract(checkpoint)
    with GraphWriter(tmp_path / "graph") as writer:
        write_encoder(writer, checkpoint, contract, smoothed(), PRECISIONS["fp32"])
    session = onnxruntime.InferenceSession(tmp_path / "graph", providers=["CPUExecutionProvider"])
    expected = embed_reference(checkpoint.folder, contract, TEXTS)
    for row, ids in enumerate(Tokenizer(checkpoint.tokenizer, 512).encode(TEXTS).ids):
        feeds = {"input_ids": ids[None].astype(np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
        np.testing.assert_allclose(
            session.run([OUTPUT], feeds)[0][0], expected[row], atol=FP32_MAX_ABS_DIFF, rtol=0
        )


def test_smoothing_reduces_an_outlier_channel(checkpoint, calibration):
    layer, norm = checkpoint.layer(0), checkpoint.embedding_norm()
    gain = norm.gain.copy()
    gain[5] *= 50
    outlier = Norm(gain, norm.shift)
    inputs = calibration.advance(outlier, layer)
    divisors = smooth(outlier, layer, inputs, STRENGTHS, checkpoint.config.heads).attention_skip
    before = inputs.attention.peak
    after = before / divisors
    assert before.max() / np.median(before) > 20
    assert after.max() / np.median(after) < before.max() / np.median(before) / 3


def test_inner_channels_are_distributed_over_the_blocks_by_size():
    divisors = np.random.default_rng(0).permutation(256).astype(np.float32) + 1
    order, shared = _dealt(divisors)
    dealt = divisors[order].reshape(4, 64)
    # If the channels are sorted by size, each group of four adjacent channels is distributed over the four
    # blocks, with the same rank in each block.
    assert ((np.sort(dealt) - 1) // 4 == np.arange(64)).all()
    expected = np.exp(np.log(dealt).mean(axis=0) - np.log(dealt).mean())
    np.testing.assert_allclose(shared.reshape(4, 64), np.tile(expected, (4, 1)), rtol=1e-5)


def test_inner_channels_without_rotation_keep_their_order():
    order, shared = _dealt(np.arange(1, 16, dtype=np.float32))
    assert (order == np.arange(15)).all()
    assert (shared == 1).all()


def test_rotation_reduces_an_outlier_channel_of_gelu(checkpoint, calibration):
    layer, norm = checkpoint.layer(0), checkpoint.embedding_norm()
    bias = layer.up.bias.copy()
    bias[7] = 50
    layer = replace(layer, up=replace(layer.up, bias=bias))
    inputs = calibration.advance(norm, layer)
    found = smooth(norm, layer, inputs, STRENGTHS, checkpoint.config.heads)
    order, _ = _dealt(_inner_divisors(inputs.gelu.peak, layer.down.weight, STRENGTHS.gelu))
    before = inputs.gelu.peak[order].reshape(-1, len(found.down.divisors))
    after = before / found.down.divisors
    assert before.max() / np.median(before) > 20
    assert after.max() / np.median(after) < before.max() / np.median(before) / 2


def test_rounding_keeps_the_mean_of_each_output(checkpoint, calibration):
    """Rounding changes the mean of each output, and a change of the bias corrects this."""
    layer, norm = checkpoint.layer(0), checkpoint.embedding_norm()
    inputs, heads = calibration.advance(norm, layer), checkpoint.config.heads
    exact = smooth(norm, layer, inputs, STRENGTHS, heads)
    found = smooth(
        norm, layer, inputs, STRENGTHS, heads, lambda weight, inputs, how: round_columns(weight, how)
    )
    head = rotation(checkpoint.config.hidden // heads)
    order, divisors = _dealt(_inner_divisors(inputs.gelu.peak, layer.down.weight, STRENGTHS.gelu))
    means = {
        "query": (inputs.attention.mean + exact.output.bias) / exact.attention_skip,
        "output": inputs.context.divided(_context(exact, layer, head)).rotated(head).mean,
        "up": (inputs.ffn.mean + exact.down.bias) / exact.ffn_skip,
        "down": inputs.gelu.mean[order] / divisors,
    }
    moved = {
        "query": (inputs.attention.mean + found.output.bias) / found.attention_skip,
        "up": (inputs.ffn.mean + found.down.bias) / found.ffn_skip,
    }
    for name, mean in means.items():
        before, after = getattr(exact, name), getattr(found, name)
        mean, now = (rotated(each, before.rotation) for each in (mean, moved.get(name, mean)))
        expected = mean @ before.weight + before.bias
        _close(now @ after.rounded.weight + after.bias, expected)
        assert np.abs(mean @ after.rounded.weight + before.bias - expected).max() > 1e-4


def _context(smoothed, layer, head):
    """Return the divisors of the attention output: the unrotated smoothed weight / the original weight."""
    return (rotated_rows(smoothed.output.weight, head.T) / layer.output.weight)[:, 0]


def _apply(x, linear):
    if linear.divisors is not None:
        x = x / np.tile(linear.divisors, x.shape[1] // len(linear.divisors))
    return rotated(x, linear.rotation) @ linear.weight + linear.bias


def _affine(normal, norm):
    return normal * norm.gain + norm.shift


def _close(found, expected):
    np.testing.assert_allclose(found, expected, atol=SMOOTHING_RELATIVE * np.abs(expected).max(), rtol=0)
