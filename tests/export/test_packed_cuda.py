"""The packed fp16 graph for CUDA, tested without a GPU: structure, schema and numerical results.

The graph runs in two ways: in onnx.reference with numpy operators (tests/packed_nodes.py), and in ONNX
Runtime with operators that have CPU kernels (koe5_export/simulated.py).
"""

import re
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.packed_cuda import why_not_packed_cuda
from koe5_export.reference import embed_reference
from koe5_export.seeded import Size, write_seeded_checkpoint
from koe5_export.simulated import SimulatedSession
from koe5_export.texts import VERIFICATION
from koe5_export.verify import verify_artifact
from onnx import TensorProto
from onnx.numpy_helper import to_array
from onnx.reference import ReferenceEvaluator
from packed_nodes import OPERATORS
from tolerances import PACKED_COSINE_MIN, SIMULATED_COSINE_MIN

from koe5_onnx import Artifact, EngineOptions, FidelityError, ProviderError, Tokenizer
from koe5_onnx.artifact import GRAPHS, PACKED_CUDA_GRAPH, weights_of
from koe5_onnx.engine.batching import Batch, pack_cuda
from koe5_onnx.engine.graphs import INPUTS, OUTPUT, choose
from koe5_onnx.engine.session import Session

GRAPH = GRAPHS["fp16"]
WEIGHTS = weights_of(GRAPH)

SHAPES = {
    "xlm-roberta": Size(3, 64, 4, 128, 1200),
    "bert, cls": Size(2, 64, 2, 256, 1200, model_type="bert", positions=512, pooling="cls"),
    "bert, mean": Size(2, 64, 8, 128, 1200, model_type="bert", positions=512),
}
NO_KERNEL = r"NOT_IMPLEMENTED : .*PackedMultiHeadAttention"
"""Pattern of ONNX Runtime's error for a missing kernel. The wording after the code depends on the version."""
TEXTS = [*VERIFICATION[:12], "", "나라", "<pad> 가 <pad>", "<pad>", "길이 " * 700]


@pytest.fixture(scope="module", params=SHAPES)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "checkpoint"
    write_seeded_checkpoint(folder, SHAPES[request.param])
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def artifact(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed-artifact") / "fp16"
    return export_checkpoint(checkpoint, out, ExportOptions(precision="fp16"))


@pytest.fixture(scope="module")
def packed(artifact):
    return onnx.load(artifact.path / PACKED_CUDA_GRAPH, load_external_data=False)


@pytest.fixture(scope="module")
def on_cpu(artifact):
    """Return the artifact with a manifest that also allows the CPU."""
    target = replace(artifact.manifest.target, devices=("cuda", "cpu"))
    return Artifact(artifact.path, replace(artifact.manifest, target=target))


@pytest.fixture(scope="module")
def expected(checkpoint, artifact):
    return embed_reference(checkpoint.folder, artifact.manifest.contract, TEXTS)


@pytest.fixture(scope="module")
def arrays(artifact):
    contract = artifact.manifest.contract
    ids = Tokenizer(artifact.tokenizer, contract.max_tokens).encode(TEXTS).ids
    batch = Batch(np.arange(len(ids)), 0)
    counting = artifact.manifest.architecture.counts_from_pad
    return pack_cuda(ids, batch, contract.pad_id, counts_from_pad=counting)


def cosines(found, expected):
    return (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)


def test_a_layer_is_eleven_nodes(packed, artifact):
    kinds = [node.op_type for node in packed.graph.node if node.name.startswith("layer.")]
    # The two inputs of the last residual sum are converted to fp32 for the final norm.
    assert [kinds.pop(), kinds.pop()] == ["Cast", "Cast"]
    attend = ["MatMul", "MatMul", "MatMul", "Add", "PackedMultiHeadAttention", "MatMul"]
    layer = [*attend, "SkipLayerNormalization", "MatMul", "BiasGelu", "MatMul"]
    layers = artifact.manifest.architecture.layers
    between = [*layer, "SkipLayerNormalization"] * (layers - 1)
    assert kinds == ["LayerNormalization", *between, *layer]


def test_all_nodes_are_used_and_none_computes_shapes(packed, artifact):
    used = {name for node in packed.graph.node for name in node.input} | {OUTPUT}
    assert {name for node in packed.graph.node for name in node.output} <= used
    assert {tensor.name for tensor in packed.graph.initializer} <= used
    by_first_token = artifact.manifest.contract.pooling == "cls"
    unread = {"text_of_token"} if by_first_token else set()
    assert {value.name for value in packed.graph.input} - used == unread
    # ONNX Runtime runs nodes that compute shapes on the CPU, and an If node waits for the GPU.
    assert not {"Shape", "ConstantOfShape", "If", "Range", "CumSum"} & {n.op_type for n in packed.graph.node}


def test_inputs_and_output_of_the_graph(packed, artifact):
    assert [value.name for value in packed.graph.input] == list(INPUTS["packed_cuda"])
    (output,) = packed.graph.output
    assert output.type.tensor_type.elem_type == TensorProto.FLOAT
    assert output.type.tensor_type.shape.dim[1].dim_value == artifact.manifest.contract.dim


def test_both_graphs_share_their_weights(artifact, packed):
    padded = onnx.load(artifact.graph, load_external_data=False)
    of_padded = {tensor.name: tensor for tensor in padded.graph.initializer}
    shared = [tensor for tensor in packed.graph.initializer if tensor.external_data]
    assert shared
    for tensor in packed.graph.initializer:
        assert tensor.name.startswith("pool.") or _matches(tensor, of_padded)
    weights = {name for name in of_padded if name.endswith(".weight")}
    assert weights <= {tensor.name for tensor in packed.graph.initializer}
    assert {e.value for t in shared for e in t.external_data if e.key == "location"} == {
        WEIGHTS.removeprefix("onnx/")
    }


def _matches(tensor, of_padded):
    if (whole := tensor.name.removesuffix(".query")) == tensor.name:
        return tensor == of_padded[whole]
    query, *key_and_value = np.split(to_array(of_padded[whole]), 3)
    assert not np.any(key_and_value)
    return query.any() and np.array_equal(to_array(tensor), query)


def test_products_norms_and_attention_are_fp16_and_pooling_is_fp32(packed):
    inferred = onnx.shape_inference.infer_shapes(packed)
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    kinds |= {tensor.name: tensor.data_type for tensor in packed.graph.initializer}
    assert kinds["layer.0.query.weight"] == kinds["layer.1.middle.gain"] == TensorProto.FLOAT16
    assert kinds["last_hidden_state.gain"] == kinds["last_hidden_state.bias"] == TensorProto.FLOAT
    casts = [node.input[0] for node in packed.graph.node if node.op_type == "Cast"]
    # Only the two inputs of the last sum and, for mean pooling, the integer token counts are converted.
    assert len(casts) in (2, 3)


def test_onnxruntime_accepts_the_schema(artifact):
    """A CPU build checks attributes, types and shapes of the CUDA operator before it looks for a kernel."""
    with pytest.raises(Exception, match=NO_KERNEL):
        onnxruntime.InferenceSession(artifact.path / PACKED_CUDA_GRAPH, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("damage", ["num_heads", "type", "inputs"])
def test_onnxruntime_rejects_a_wrong_node(artifact, tmp_path, damage):
    model = onnx.load(artifact.path / PACKED_CUDA_GRAPH)
    node = next(node for node in model.graph.node if node.op_type == "PackedMultiHeadAttention")
    if damage == "num_heads":
        del node.attribute[:]
    elif damage == "type":
        node.input[4] = "input_ids"
    else:
        del node.input[4:]
    with pytest.raises(Exception, match=r"INVALID_GRAPH|Required attribute|FAIL") as found:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert not re.search(NO_KERNEL, str(found.value))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_the_graph_in_numpy_agrees_with_pytorch(artifact, arrays, expected):
    evaluator = ReferenceEvaluator(onnx.load(artifact.path / PACKED_CUDA_GRAPH), new_ops=OPERATORS)
    (found,) = evaluator.run(None, dict(zip(INPUTS["packed_cuda"], arrays, strict=True)))
    assert found.dtype == np.float32
    assert cosines(found, expected).min() >= PACKED_COSINE_MIN


def test_the_simulated_graph_agrees_with_the_padded_graph(on_cpu, arrays, expected):
    simulated = SimulatedSession(on_cpu).run(*arrays)
    padded = Session(on_cpu, EngineOptions(graph="padded"))
    ids = np.split(arrays[0], arrays[4][1:-1])
    alone = [padded.run(row[None], np.ones((1, len(row)), np.int64))[0] for row in ids]
    assert cosines(simulated, np.array(alone)).min() >= SIMULATED_COSINE_MIN
    assert cosines(simulated, expected).min() >= PACKED_COSINE_MIN


@pytest.mark.parametrize("wrong", ["token_offset", "cumulative_lengths", "text_of_token", "position_ids"])
def test_the_simulation_reads_every_input(on_cpu, arrays, wrong):
    """If the simulation ignored an input, other tests could not detect wrong values of it."""
    if wrong == "text_of_token" and on_cpu.manifest.contract.pooling == "cls":
        pytest.skip("the cumulative lengths determine the first tokens")
    session = SimulatedSession(on_cpu)
    names = [value.name for value in onnx.load(session.graph.file, load_external_data=False).graph.input]
    expected = session.run(*arrays)
    changed = {name: array.copy() for name, array in zip(names, arrays, strict=True)}
    if wrong == "cumulative_lengths":
        changed[wrong][1:-1] += 1
    else:
        changed[wrong] = np.roll(changed[wrong].ravel(), 1).reshape(changed[wrong].shape)
    assert cosines(session.run(*changed.values()), expected).min() < SIMULATED_COSINE_MIN


def test_published_with_its_own_certificate(artifact):
    manifest = Artifact.open(artifact.path).manifest
    assert manifest.recipe["packed_graph"] == "yes"
    assert manifest.packed_certificate.measured_with["graph"] == PACKED_CUDA_GRAPH
    assert manifest.certificate.measured_with["graph"] == GRAPH
    assert manifest.packed_certificate.overall.cosine_min >= manifest.packed_certificate.gate["cosine_min"]


def test_a_damaged_packed_graph_fails_its_gate(checkpoint, artifact):
    path = artifact.path / PACKED_CUDA_GRAPH
    kept = path.read_bytes()
    graph = onnx.load(path, load_external_data=False)
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name == "layer.0.attention.bias.query")
    bias.raw_data = (np.frombuffer(bias.raw_data, np.float16) + np.float16(1)).tobytes()
    norm = next(tensor for tensor in graph.graph.initializer if tensor.name == "layer.1.input.gain")
    norm.raw_data = (np.frombuffer(norm.raw_data, np.float16) * np.float16(-1)).tobytes()
    try:
        onnx.save(graph, path)
        verify_artifact(artifact, checkpoint, graph="padded")
        with pytest.raises(FidelityError, match="the artifact fails its gate"):
            verify_artifact(artifact, checkpoint, graph="packed")
    finally:
        path.write_bytes(kept)


def test_the_packed_graph_is_the_default_on_cuda(artifact):
    found = choose(artifact, EngineOptions(device="cuda"))
    assert (found.file, found.layout) == (artifact.path / PACKED_CUDA_GRAPH, "packed_cuda")
    assert choose(artifact, EngineOptions(device="cuda:1", graph="padded")).layout == "padded"
    with pytest.raises(ProviderError, match="the artifact has no packed graph for CPUs"):
        choose(artifact, EngineOptions(graph="packed"))


def test_older_fp16_artifacts_run_the_padded_graph(artifact):
    files = {name: file for name, file in artifact.manifest.files.items() if name != PACKED_CUDA_GRAPH}
    manifest = replace(artifact.manifest, files=files, packed_certificate=None)
    before = Artifact(artifact.path, manifest)
    before.check_files(hashes=True)
    assert choose(before, EngineOptions(device="cuda")).layout == "padded"
    assert "no packed graph for CUDA" in choose(before, EngineOptions(device="cuda")).reason
    with pytest.raises(ProviderError, match="the packed graph cannot run: the artifact has no packed graph"):
        choose(before, EngineOptions(device="cuda", graph="packed"))


def test_reasons_for_no_packed_graph():
    assert why_not_packed_cuda("fp16", 64) is None
    assert "for fp16 on CUDA, not int8" in why_not_packed_cuda("int8", 64)
    assert "a head size of 20" in why_not_packed_cuda("fp16", 20)
    assert "a head size of 320" in why_not_packed_cuda("fp16", 320)
