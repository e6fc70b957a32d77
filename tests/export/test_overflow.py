"""A linear layer whose outputs exceed the largest fp16 value, 65,504.

The feed-forward network of one layer outputs magnitudes above 100,000 in two channels. The norm after it
scales the other channels back to their usual range. The fp16 artifact must still pass its gate.
"""

import numpy as np
import onnx
import pytest
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.precision import PRECISIONS
from koe5_export.seeded import Size, write_seeded_checkpoint
from koe5_export.texts import VERIFICATION
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from koe5_onnx import FidelityError, Tokenizer
from koe5_onnx.artifact import PACKED_CUDA_GRAPH

SIZE = Size(layers=3, hidden=128, heads=4, intermediate=512, vocabulary=1200)
CHANNELS = [5, 77]
LAYER = "encoder.layer.1.output"
FP16_MAX = float(np.finfo(np.float16).max)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overflow") / "checkpoint"
    write_seeded_checkpoint(folder, SIZE)
    weights = load_file(folder / "model.safetensors")
    large = np.float32(8000)
    down, norm = weights[f"{LAYER}.dense.weight"], weights[f"{LAYER}.LayerNorm.weight"]
    down[CHANNELS[0]], down[CHANNELS[1]] = large, -large
    others = np.setdiff1d(np.arange(SIZE.hidden), CHANNELS)
    norm[others] *= 4e4
    norm[CHANNELS] = 0.1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return Checkpoint.open(folder)


def test_outputs_exceed_the_fp16_range(checkpoint):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    encoder, found = AutoModel.from_pretrained(checkpoint.folder).eval(), []
    encoder.encoder.layer[1].output.dense.register_forward_hook(lambda *args: found.append(args[2]))
    ids = Tokenizer(checkpoint.tokenizer, 512).encode([VERIFICATION[0]]).ids[0].astype(np.int64)
    with torch.inference_mode():
        encoder(torch.tensor(ids[None]))
    assert found[0].abs().max() > 2 * FP16_MAX


def test_both_graphs_pass_their_gates(checkpoint, tmp_path):
    artifact = export_checkpoint(checkpoint, tmp_path / "fp16", ExportOptions(precision="fp16"))
    least = PRECISIONS["fp16"].gate.cosine_min
    for certificate in (artifact.manifest.certificate, artifact.manifest.packed_certificate):
        assert certificate.overall.cosine_min >= least
    assert artifact.manifest.recipe["residual_scale"] == PRECISIONS["fp16"].residual_scale
    model = onnx.load(artifact.path / PACKED_CUDA_GRAPH)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    written = numpy_helper.to_array(weights["layer.1.down.weight"])
    assert np.abs(written[:, CHANNELS]).max() == 8000 * PRECISIONS["fp16"].residual_scale


@pytest.mark.filterwarnings("ignore:.*(invalid value|overflow):RuntimeWarning")
def test_without_the_residual_scale_the_gate_fails(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(PRECISIONS["fp16"], "residual_scale", 1.0)
    with pytest.raises(FidelityError):
        export_checkpoint(checkpoint, tmp_path / "fp16", ExportOptions(precision="fp16"))
    assert not (tmp_path / "fp16").exists()
