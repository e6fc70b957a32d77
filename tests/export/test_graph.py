from pathlib import Path

import numpy as np
import onnx
import pytest
from edited_json import edited
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.reference import embed_reference
from koe5_export.texts import VERIFICATION, text_of_length
from tolerances import FP32_MAX_ABS_DIFF

from koe5_onnx import Embedder, EngineOptions, Tokenizer, TruncationWarning
from koe5_onnx.engine.batching import Batch, pad
from koe5_onnx.engine.session import Session


def corner_texts(artifact):
    tokenizer = Tokenizer(artifact.tokenizer, artifact.manifest.contract.max_tokens)
    long = [text_of_length(tokenizer, count) for count in (63, 64, 65, 510, 511, 512, 700)]
    return [*long, "", "네", "<pad> typed <pad> by a user", "👋🇰🇷", "a" * 3000]


def difference(artifact, folder):
    texts = corner_texts(artifact)
    with Embedder.open(artifact.path) as embedder, pytest.warns(TruncationWarning):
        found = embedder.encode(texts)
    return np.abs(found - embed_reference(folder, artifact.manifest.contract, texts)).max()


def test_fp32_equals_pytorch_for_edge_cases(exported, seeded):
    assert difference(exported["fp32"], seeded) <= FP32_MAX_ABS_DIFF


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_matrices_are_external_data_at_page_boundaries(exported, precision):
    model = onnx.load(exported[precision].graph, load_external_data=False)
    outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    keys = [{entry.key: entry.value for entry in tensor.external_data} for tensor in outside]
    assert all(int(key["offset"]) % 4096 == 0 for key in keys)
    assert {key["location"] for key in keys} == {Path(exported[precision].manifest.weights).name}
    assert len(model.SerializeToString()) < 1_000_000


def test_all_int8_matrices_are_int8(exported):
    model = onnx.load(exported["int8"].graph)
    matrices = [t for t in model.graph.initializer if len(t.dims) == 2 and t.name.endswith(".weight")]
    kinds = {t.name: t.data_type for t in matrices if t.name != "positions.weight"}
    assert set(kinds.values()) == {onnx.TensorProto.INT8}
    assert len(kinds) == 1 + 6 * exported["int8"].manifest.architecture.layers


def for_the_cpu(exported):
    return {
        name: artifact for name, artifact in exported.items() if "cpu" in artifact.manifest.target.devices
    }


def test_no_operator_that_is_slow_on_the_cpu(exported):
    for artifact in for_the_cpu(exported).values():
        graph = onnx.load(artifact.graph, load_external_data=False).graph
        # Not the embedding tables, whose DequantizeLinear costs almost nothing.
        nodes = [node.op_type for node in graph.node if node.name not in {"words", "positions"}]
        assert not {"SkipLayerNormalization", "DequantizeLinear", "DynamicQuantizeLinear"} & set(nodes)
        assert nodes.count("If") == artifact.manifest.architecture.layers


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_embeddings_without_normalization(folder, tmp_path, pooling):
    flags = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    with edited(folder / "1_Pooling" / "config.json") as settings:
        settings |= flags
    with edited(folder / "modules.json") as modules:
        del modules[2:]
    artifact = export_checkpoint(Checkpoint.open(folder), tmp_path / "out")
    texts = ["서울은 수도이다.", "고래는 포유류이다."]
    expected = embed_reference(folder, artifact.manifest.contract, texts)
    with Embedder.open(artifact.path) as embedder:
        found = embedder.encode(texts)
        cosine = embedder.similarity(found, expected)
    assert np.linalg.norm(expected, axis=1).min() > 2
    np.testing.assert_allclose(found, expected, atol=10 * FP32_MAX_ABS_DIFF, rtol=0)
    np.testing.assert_allclose(np.diag(cosine), 1, atol=FP32_MAX_ABS_DIFF, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_bert_positions_count_from_zero(folder, tmp_path, precision):
    """The limit of 30 tokens is below some padded lengths."""
    with edited(folder / "config.json") as config, edited(folder / "sentence_bert_config.json") as settings:
        config["model_type"], settings["max_seq_length"] = "bert", 30
    options = ExportOptions(precision=precision)
    artifact = export_checkpoint(Checkpoint.open(folder), tmp_path / "out", options)
    assert artifact.manifest.contract.max_tokens == 30
    if precision == "fp32":
        assert difference(artifact, folder) <= FP32_MAX_ABS_DIFF


@pytest.mark.parametrize("padding", [1, 3, 40, 447])
def test_padding_does_not_change_fp32(exported, padding):
    """Other runtimes may run model.onnx with any padded length."""
    session = Session(exported["fp32"], EngineOptions(threads=1))
    rows = Tokenizer(exported["fp32"].tokenizer, 512).encode([VERIFICATION[0], "<pad> 네", ""]).ids
    rows.append(np.arange(4, 69, dtype=np.int32))
    # The row of 65 tokens is longer than ROUNDED_TOKENS, so the graph may skip its attention mask.
    width = max(map(len, rows)) + padding
    ids, mask = pad(rows, Batch(np.arange(len(rows)), width), exported["fp32"].manifest.contract.pad_id)
    together = session.run(ids, mask)
    for row, alone in enumerate(rows):
        found = session.run(alone[None].astype(np.int64), np.ones((1, len(alone)), np.int64))
        np.testing.assert_allclose(found[0], together[row], atol=FP32_MAX_ABS_DIFF, rtol=0)


def test_the_graph_consists_of_these_operators(exported):
    """Measure the speed of an operator before adding it, because some are slow in ONNX Runtime."""
    shared = "Add And Cast CumSum Div Equal Gather Greater If LayerNormalization LpNormalization MatMul Mul"
    shared += " Not ReduceMin ReduceSum Shape Squeeze Unsqueeze BiasGelu"
    own = {
        "fp32": "",
        "int8": "Abs Concat ConstantOfShape DequantizeLinear MatMulIntegerToFloat Max QuantizeLinear"
        " ReduceMax Reshape",
        "int8-block": "DequantizeLinear MatMulNBits Reshape",
        "int4-block": "DequantizeLinear MatMulNBits Reshape",
    }
    for precision, artifact in for_the_cpu(exported).items():
        nodes = onnx.load(artifact.graph, load_external_data=False).graph.node
        assert {node.op_type for node in nodes} == {*shared.split(), *own[precision].split()}
        matmuls = [node.name for node in nodes if node.op_type == "MatMul"]
        layers = artifact.manifest.architecture.layers
        assert len(matmuls) == 1 + layers * (6 if precision == "fp32" else 3)
        branches = [a.g.node for node in nodes if node.op_type == "If" for a in node.attribute]
        assert [[node.op_type for node in branch] for branch in branches] == [["MultiHeadAttention"]] * (
            2 * layers
        )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_size_of_the_weights_matches_their_type(exported_minilm, precision):
    """A weight takes 4 bytes in fp32 and 1 byte in int8, except positions, scales and padding to pages."""
    artifact = exported_minilm[precision]
    each = 4 if precision == "fp32" else 1
    rows = 259 if precision == "fp32" else 4 * 259
    tables = artifact.manifest.architecture.parameters - (512 + 2) * 384 + rows * 384
    word_scales = 0 if precision == "fp32" else 30_522 * 384 // 64 * 4
    expected = each * tables + word_scales
    assert artifact.manifest.files[artifact.manifest.weights].bytes == pytest.approx(expected, rel=0.02)
