"""The packed graph for fused kernels, which has the weights of the padded graph."""

import sys

import numpy as np
import onnx
import pytest
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import read_contract
from koe5_export.packed_cpu import KERNELS, why_not_packed_cpu, write_packed_cpu
from koe5_export.seeded import Size, encoder_config, write_seeded_checkpoint
from koe5_export.texts import VERIFICATION
from koe5_export.verify import verify_artifact
from tolerances import FUSED_COSINE_MEAN, FUSED_COSINE_MIN

from koe5_onnx import Artifact, Embedder, FidelityError, TruncationWarning
from koe5_onnx.artifact import PACKED_CPU_GRAPH
from koe5_onnx.engine.graphs import installed_kernels

SHAPES = {
    "xlm-roberta": Size(3, 64, 4, 128, 1200),
    "bert, cls": Size(2, 64, 2, 256, 1200, model_type="bert", positions=512, pooling="cls"),
}
TEXTS = [*VERIFICATION, "", "나라", "<pad> 가 <pad>", "<pad>", "길이 " * 700]
needs_kernels = pytest.mark.skipif(isinstance(installed_kernels(), str), reason=str(installed_kernels()))


@pytest.fixture(scope="module", params=SHAPES)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed-cpu") / "checkpoint"
    write_seeded_checkpoint(folder, SHAPES[request.param])
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def artifact(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed-cpu-artifact") / "int8"
    return export_checkpoint(checkpoint, out, ExportOptions(precision="int8"))


@pytest.fixture
def packed_graph(checkpoint, artifact, tmp_path):
    write_packed_cpu(artifact.graph, tmp_path / "packed.onnx", checkpoint.config, read_contract(checkpoint))
    return onnx.load(tmp_path / "packed.onnx", load_external_data=False)


def test_five_fused_nodes_per_layer(checkpoint, packed_graph):
    fused = [node.op_type for node in packed_graph.graph.node if node.domain == KERNELS]
    layer = ["ProjectQkv", "RaggedAttention", "ProjectAddNorm", "ProjectGelu", "ProjectAddNorm"]
    pooling = ["PoolMean"] * (read_contract(checkpoint).pooling == "mean")
    assert fused == ["NormQuantize", *layer * checkpoint.config.layers, *pooling]


def test_both_graphs_share_their_weights(artifact, packed_graph):
    padded = onnx.load(artifact.graph, load_external_data=False)
    of_padded = {tensor.name: tensor for tensor in padded.graph.initializer}
    shared = [tensor for tensor in packed_graph.graph.initializer if tensor.external_data]
    assert shared
    for tensor in shared:
        assert tensor == of_padded[tensor.name]
    weights = {name for name in of_padded if name.endswith(".weight")}
    assert weights == {tensor.name for tensor in packed_graph.graph.initializer} & weights


def test_reasons_for_no_packed_graph(checkpoint):
    config = checkpoint.config
    assert why_not_packed_cpu("int8", [], config) is None
    assert "for int8, not fp32" in why_not_packed_cpu("fp32", [], config)
    assert "layer.1.up" in why_not_packed_cpu("int8", ["layer.1.up"], config)
    odd = encoder_config(Size(1, 96, 2, 64, 1200))
    assert "multiples of 64" in why_not_packed_cpu("int8", [], odd)


def test_without_kernels_the_recipe_states_the_reason(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "koe5_onnx_kernels", None)
    made = export_checkpoint(checkpoint, tmp_path / "int8", ExportOptions(precision="int8"))
    assert made.manifest.packed_certificate is None
    assert PACKED_CPU_GRAPH not in made.manifest.files
    assert made.manifest.recipe["packed_graph"].startswith(
        "no: it cannot be measured because fused kernels are not"
    )


@needs_kernels
def test_published_with_its_own_certificate(artifact):
    manifest = Artifact.open(artifact.path).manifest
    assert manifest.recipe["packed_graph"] == "yes"
    assert manifest.packed_certificate.measured_with["graph"] == PACKED_CPU_GRAPH
    assert manifest.packed_certificate.batch_cosine_min == pytest.approx(1, abs=1e-12)
    assert manifest.certificate.measured_with["graph"] == manifest.graph


@needs_kernels
@pytest.mark.filterwarnings("ignore::koe5_onnx.TruncationWarning")
@pytest.mark.parametrize("max_batch_tokens", [1, 300, 100_000])
def test_agrees_with_the_padded_graph(artifact, max_batch_tokens):
    with Embedder.open(artifact.path, graph="padded") as embedder:
        expected = embedder.encode(TEXTS)
    with Embedder.open(artifact.path, graph="packed", max_batch_tokens=max_batch_tokens) as embedder:
        found = embedder.encode(TEXTS)
    cosines = (expected * found).sum(axis=1)
    assert cosines.min() >= FUSED_COSINE_MIN
    assert cosines.mean() >= FUSED_COSINE_MEAN


@needs_kernels
def test_results_do_not_depend_on_other_texts_or_threads(artifact):
    with (
        pytest.warns(TruncationWarning),
        Embedder.open(artifact.path, graph="packed", threads=1) as embedder,
    ):
        together = embedder.encode(TEXTS)
    with (
        pytest.warns(TruncationWarning),
        Embedder.open(artifact.path, graph="packed", threads=2) as embedder,
    ):
        alone = np.concatenate([embedder.encode([text]) for text in TEXTS])
    np.testing.assert_array_equal(alone, together)


@needs_kernels
def test_a_damaged_packed_graph_fails_its_gate(checkpoint, artifact):
    """The damage negates the scales of one linear layer, in the packed graph only."""
    path = artifact.path / PACKED_CPU_GRAPH
    kept = path.read_bytes()
    graph = onnx.load(path, load_external_data=False)
    scale = next(tensor for tensor in graph.graph.initializer if tensor.name == "layer.0.down.scale")
    scale.raw_data = (np.frombuffer(scale.raw_data, np.float32) * -1).tobytes()
    try:
        onnx.save(graph, path)
        verify_artifact(artifact, checkpoint, graph="padded")
        with pytest.raises(FidelityError, match="the artifact fails its gate"):
            verify_artifact(artifact, checkpoint, graph="packed")
    finally:
        path.write_bytes(kept)
