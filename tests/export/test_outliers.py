"""A checkpoint with outlier channels like those of trained transformers, which seeded weights do not have.

Two channels of the residual stream are about +100 and -100 from the end of the first layer to the last norm,
while the others are about 1. The norms produce these outliers, and the linear layers have small weights for
these two inputs. If activations have one scale per tensor, the outliers determine it, and few of its 256
steps remain for the other channels.
"""

import numpy as np
import onnxruntime
import pytest
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import read_contract
from koe5_export.precision import PRECISIONS
from koe5_export.reference import embed_reference
from koe5_export.seeded import Size, write_seeded_checkpoint
from koe5_export.texts import VERIFICATION
from safetensors.numpy import load_file, save_file
from tolerances import NAIVE_INT8_COSINE_MEAN, OUTLIER_INT8_COSINE_MEAN

from koe5_onnx import Embedder, Tokenizer
from koe5_onnx.engine.graphs import OUTPUT

pytestmark = pytest.mark.slow
SIZE = Size(layers=5, hidden=128, heads=4, intermediate=512, vocabulary=1200)
CHANNELS = [5, 77]
OUTLIERS = np.array([100, -100], np.float32)
NORMS = [
    f"encoder.layer.{layer}.{norm}.LayerNorm"
    for layer in range(SIZE.layers)
    for norm in ("attention.output", "output")
]


def plant(weights):
    """Change the weights so that the output of every norm except the first and the last has the outliers."""
    others = np.setdiff1d(np.arange(SIZE.hidden), CHANNELS)
    deviation = np.sqrt(1 + np.square(OUTLIERS).sum() / SIZE.hidden)
    for number, norm in enumerate(NORMS):
        first, last = number == 1, number == len(NORMS) - 1
        gain, shift = weights[f"{norm}.weight"], weights[f"{norm}.bias"]
        if number > 1:  # undo the division by the standard deviation, which the outliers increase
            gain[others] *= deviation
            gain[CHANNELS] = 1 / OUTLIERS[0] if last else deviation
        if number >= 1 and not last:
            shift[CHANNELS] = OUTLIERS if first else 0
            for reader in readers(number):
                weights[f"{reader}.weight"][:, CHANNELS] /= OUTLIERS[0]


def readers(number):
    """Return the names of the linear layers whose input is the output of norm `number`."""
    layer = number // 2
    if number % 2 == 0:
        return [f"encoder.layer.{layer}.intermediate.dense"]
    return [f"encoder.layer.{layer + 1}.attention.self.{name}" for name in ("query", "key", "value")]


def strengthen(weights):
    """Scale up weights of each layer. Otherwise, the outliers would hide how layers change the states."""
    for layer in range(SIZE.layers):
        for name in ("attention.output.dense", "output.dense"):
            weights[f"encoder.layer.{layer}.{name}.weight"] *= (2 * SIZE.layers) ** 0.5
        for name in ("query", "key"):
            weights[f"encoder.layer.{layer}.attention.self.{name}.weight"] *= 1.2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outliers") / "checkpoint"
    write_seeded_checkpoint(folder, SIZE)
    weights = load_file(folder / "model.safetensors")
    plant(weights)
    strengthen(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def expected(checkpoint):
    return embed_reference(checkpoint.folder, read_contract(checkpoint), VERIFICATION)


def test_the_checkpoint_has_outliers(checkpoint):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(checkpoint.folder).eval()
    ids = Tokenizer(checkpoint.tokenizer, 512).encode([VERIFICATION[0]]).ids[0].astype(np.int64)
    with torch.inference_mode():
        states = encoder(torch.tensor(ids[None]), output_hidden_states=True).hidden_states
    for hidden in states[2:-1]:
        sizes = np.median(np.abs(hidden[0].numpy()), axis=0)
        assert sizes[CHANNELS].min() / np.median(sizes) > 50


def test_per_tensor_int8_fails_with_outliers(checkpoint, expected, tmp_path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    artifact = export_checkpoint(checkpoint, tmp_path / "fp32")
    settings = {"weight_type": QuantType.QInt8, "extra_options": {"DefaultTensorType": 1}}
    quantize_dynamic(artifact.graph, tmp_path / "naive.onnx", **settings)
    session = onnxruntime.InferenceSession(tmp_path / "naive.onnx", providers=["CPUExecutionProvider"])
    ids = Tokenizer(artifact.tokenizer, 512).encode(VERIFICATION).ids
    found = [
        session.run(
            [OUTPUT],
            {"input_ids": row[None].astype(np.int64), "attention_mask": np.ones((1, len(row)), np.int64)},
        )[0][0]
        for row in ids
    ]
    assert (np.array(found) * expected).sum(axis=1).mean() < NAIVE_INT8_COSINE_MEAN


@pytest.mark.parametrize("precision", ["int8", "int8-block", "fp16"])
def test_exported_precisions_tolerate_outliers(checkpoint, expected, tmp_path, precision):
    artifact = export_checkpoint(checkpoint, tmp_path / precision, ExportOptions(precision=precision))
    assert artifact.manifest.certificate.overall.cosine_mean >= OUTLIER_INT8_COSINE_MEAN
    if precision == "fp16":
        assert artifact.manifest.certificate.overall.cosine_min >= PRECISIONS["fp16"].gate.cosine_min
    else:
        with Embedder.open(artifact.path) as embedder:
            found = (embedder.encode(VERIFICATION) * expected).sum(axis=1)
        assert found.mean() >= OUTLIER_INT8_COSINE_MEAN
