"""Target devices, graphs and sizes of the precisions, and the automatic choice."""

import numpy as np
import onnx
import onnxruntime
import pytest
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.precision import PRECISIONS
from koe5_export.precision.auto import choose_precision
from koe5_export.precision.block import Block
from koe5_export.precision.int8 import per_token
from koe5_export.rounding import Compensation, round_blocks, round_columns
from koe5_export.smooth import LinearInputs
from koe5_export.weights import Linear
from koe5_export.writer import GraphWriter
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from koe5_onnx import Artifact, CheckpointError, Embedder, ProviderError, UnsuitedCpuWarning
from koe5_onnx.artifact import manifest as artifact
from koe5_onnx.cli import main


def test_the_runtime_knows_all_precisions():
    assert {name: one.target.devices for name, one in PRECISIONS.items()} == artifact.PRECISIONS


@pytest.mark.parametrize(
    ("features", "precision", "reason"),
    [
        (("avx512_vnni", "avx2"), "int8", "avx512_vnni"),
        (("amx_int8", "avx512_vnni"), "int8", "amx_int8"),
        (("avx_vnni",), "int8", "avx_vnni"),
        (("asimddp",), "int8", "asimddp"),
        (("avx2",), "int8", "avx2"),
        (("sse4_2",), "int8-block", "none of"),
        ((), "int8-block", "does not list"),
    ],
)
def test_auto_chooses_by_instructions_and_says_why(features, precision, reason):
    choice = choose_precision(features)
    assert choice.precision == precision
    assert reason in choice.reason


def test_export_auto(seeded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("koe5_export.cli.export.cpu_features", lambda: ("avx512f",))
    assert main(["export", str(seeded), str(tmp_path / "out"), "--precision", "auto"]) == 0
    shown = capsys.readouterr()
    assert "precision int8-block: this CPU has none of" in shown.err
    assert shown.out.index("cosine to PyTorch") < shown.out.index("int8-block, ")
    assert Artifact.open(tmp_path / "out").manifest.precision == "int8-block"


def test_the_manifest_states_devices_and_instructions(exported, monkeypatch):
    targets = {precision: found.manifest.target for precision, found in exported.items()}
    assert targets["fp16"].devices == ("cuda",)
    assert "avx512_vnni" in targets["int8"].instructions
    assert "avx2" in targets["int8"].instructions
    monkeypatch.setattr("koe5_onnx.engine.providers.cpu_features", lambda: ("avx512f",))
    with pytest.warns(UnsuitedCpuWarning, match="int8-block"):
        Embedder.open(exported["int8"].path, graph="padded").close()
    for precision in ("fp32", "int8-block", "int4-block"):
        Embedder.open(exported[precision].path).close()


def test_fp16_is_rejected_on_the_cpu(exported):
    with pytest.raises(
        ProviderError,
        match=r"runs on cuda but not on cpu.*for cpu: fp32, int8, int8-block, int4-block$",
    ):
        Embedder.open(exported["fp16"].path)


def test_fp16_computes_norms_pooling_and_length_in_fp32(exported):
    model = onnx.load(exported["fp16"].graph, load_external_data=False)
    producers = {name: node for node in model.graph.node for name in node.output}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    final = producers["last_hidden_state"]
    assert producers[final.input[0]].op_type == "Cast"
    assert types["last_hidden_state.gain"] == TensorProto.FLOAT
    assert final.op_type == "SkipLayerNormalization"
    assert types["layer.0.query.weight"] == TensorProto.FLOAT16
    assert all(node.op_type != "If" for node in model.graph.node)
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    # The operator's default, stash_type 1, computes the statistics in fp32.
    assert all(attribute.name != "stash_type" for node in norms for attribute in node.attribute)


def test_a_weight_beyond_the_fp16_range_is_named(seeded, tmp_path):
    weights = load_file(seeded / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][3, 4] = -70000 * 32
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in seeded.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_bytes((seeded / "1_Pooling" / "config.json").read_bytes())
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"layer\.1\.down\.weight contains 70000; the largest fp16 value is 65504"
    ):
        export_checkpoint(Checkpoint.open(folder), tmp_path / "out", ExportOptions(precision="fp16"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", [8, 4])
def test_block_products_are_those_of_the_rounded_weights(tmp_path, bits):
    """ONNX Runtime's operator checks the packing and the order of the scales."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((96, 7), dtype=np.float32) * np.linspace(1, 9, 96, dtype=np.float32)[:, None]
    precision = Block("int8-block", bits=bits, block=32, strength=0.5, gate=PRECISIONS["int8"].gate)
    rounded = round_blocks(weight, bits, 32)
    with GraphWriter(tmp_path / "graph") as g:
        linear = Linear(weight, np.zeros(7, np.float32), rounded)
        (y,) = precision.project(g, "x", [("y", linear)])
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", w]) for n, w in (("x", 96), (y, 7))]
        g.save(ends[:1], ends[1:])
    session = onnxruntime.InferenceSession(tmp_path / "graph", providers=["CPUExecutionProvider"])
    x = rng.standard_normal((5, 96), dtype=np.float32)
    expected = x @ rounded.weight
    assert np.abs(session.run(None, {"x": x})[0] - expected).max() < 0.02 * np.abs(expected).max()


def rounding_of(sample, weight):
    inputs = LinearInputs.of(sample)
    return PRECISIONS["int8"].round_weight(weight, inputs, Compensation.of(inputs.covariance))


def test_a_layer_with_an_outlier_is_quantized_in_blocks():
    """One input channel is 1,000 times larger than the others, which int8 would round to almost nothing."""
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((200, 512), dtype=np.float32)
    weight = rng.standard_normal((512, 16), dtype=np.float32)
    assert len(rounding_of(sample, weight).scale) == 1
    sample[:, 3] *= 1000
    weight[3] /= 1000
    assert len(rounding_of(sample, weight).scale) == 512 / 32
    # If every block has an outlier, blocks do not help.
    sample[:, ::32] *= 1000
    weight[::32] /= 1000
    assert len(rounding_of(sample, weight).scale) == 1


def run_int8(tmp_path, x, linears):
    """Run a graph of int8 linear layers. Return its outputs and its number of QuantizeLinear nodes."""
    precision, names = PRECISIONS["int8"], [name for name, _ in linears]
    width = x.shape[-1]
    with GraphWriter(tmp_path / "graph") as g:
        g.node("Identity", ["x"], "copy")
        precision.project(g, "copy", linears)
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, width]),
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", 1]),
        ]
        g.save(inputs, [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names])
    session = onnxruntime.InferenceSession(tmp_path / "graph", providers=["CPUExecutionProvider"])
    feeds = {"x": x[:, None], "input_ids": np.zeros((len(x), 1), np.int64)}
    kept = {node.name for node in session.get_inputs()}
    found = session.run(None, {name: value for name, value in feeds.items() if name in kept})
    nodes = onnx.load(tmp_path / "graph").graph.node
    return [rows[:, 0] for rows in found], sum(node.op_type == "QuantizeLinear" for node in nodes)


def test_the_estimated_int8_products_match_the_graph(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 64), dtype=np.float32)
    weight = rng.standard_normal((64, 7), dtype=np.float32)
    linear = Linear(weight, np.zeros(7, np.float32), round_columns(weight))
    (found,), quantized = run_int8(tmp_path, x, [("y", linear)])
    assert quantized == 1
    expected = per_token(LinearInputs.of(x)) @ linear.rounded.weight
    # A value halfway between two steps may be rounded either way.
    assert np.median(np.abs(found - expected)) < 1e-4 * np.abs(expected).max()
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_int8_graphs_can_mix_layers_with_and_without_blocks(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 64), dtype=np.float32)
    weight = rng.standard_normal((64, 7), dtype=np.float32)
    bias = np.zeros(7, np.float32)
    blocks = ("blocks", Linear(weight, bias, round_blocks(weight, 8, 32)))
    columns = ("columns", Linear(weight, bias, round_columns(weight)))
    for linears, quantizes in (([blocks, columns], 1), ([blocks], 0)):
        products, quantized = run_int8(tmp_path, x, linears)
        assert quantized == quantizes
        for found in products:
            assert np.abs(found - x @ weight).max() < 0.02 * np.abs(x @ weight).max()


def test_sizes_fall_with_the_bits(exported):
    sizes = {name: found.manifest.files[found.manifest.weights].bytes for name, found in exported.items()}
    assert sizes["fp16"] < 0.55 * sizes["fp32"]
    assert sizes["int8"] < 0.55 * sizes["fp32"]
    assert sizes["int4-block"] < 0.55 * sizes["int8"]
