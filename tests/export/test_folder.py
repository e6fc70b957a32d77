"""Import of folders in Optimum's layout, made from this project's graphs with token embeddings as output."""

import re
import shutil

import numpy as np
import onnx
import pytest
from edited_json import edited
from koe5_export import ImportOptions, import_folder
from koe5_export.import_onnx import detect_precision
from koe5_export.seeded import Size, write_seeded_checkpoint
from onnx import TensorProto, helper, numpy_helper
from tolerances import FP32_MAX_ABS_DIFF, IMPORTED_INT8_COSINE_MEAN

from koe5_onnx import (
    Artifact,
    CheckpointError,
    CheckpointWarning,
    Embedder,
    FidelityError,
    InputError,
    TruncationWarning,
)
from koe5_onnx.cli import main
from koe5_onnx.engine.graphs import HIDDEN, OUTPUT

TEXTS = ["서울은 대한민국의 수도이다.", "", "A longer sentence, with <pad> inside it.", "a " * 700]


def value(name, shape, kind=TensorProto.INT64):
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def model(exported):
    """Return a graph with token embeddings as output. It has unused nodes with names that the import adds."""
    model = onnx.load(exported["fp32"].graph)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["states" if name == HIDDEN else name for name in names]
    model.graph.node.append(helper.make_node("Identity", ["states"], [HIDDEN]))
    del model.graph.output[:]
    model.graph.output.append(value(HIDDEN, ["n", "width", 64], TensorProto.FLOAT))
    return model


def save(model, folder, name="onnx/model.onnx", **settings):
    (folder / name).parent.mkdir(exist_ok=True)
    onnx.save(model, folder / name, **settings)


def insert(model, *nodes):
    """Insert nodes at the beginning, because ONNX requires topological order."""
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])


def difference(artifact, expected):
    found = []
    for path in (artifact.path, expected.path):
        with Embedder.open(path) as embedder, pytest.warns(TruncationWarning):
            found.append(embedder.encode(TEXTS))
    return np.abs(found[0] - found[1]).max()


@pytest.mark.parametrize("name", ["onnx/model.onnx", "model.onnx"])
@pytest.mark.parametrize("outside", [False, True])
def test_an_encoder_becomes_an_artifact(model, folder, exported, tmp_path, name, outside):
    settings = {"save_as_external_data": True, "location": "model.onnx_data", "size_threshold": 0}
    save(model, folder, name, **(settings if outside else {}))
    artifact = import_folder(folder, tmp_path / "out")
    assert difference(Artifact.open(tmp_path / "out"), exported["fp32"]) <= FP32_MAX_ABS_DIFF
    assert (artifact.manifest.precision, artifact.manifest.recipe["file"]) == ("fp32", name)
    assert artifact.manifest.architecture == exported["fp32"].manifest.architecture
    assert artifact.manifest.files.keys() == exported["fp32"].manifest.files.keys()
    graph = onnx.load(artifact.graph, load_external_data=False).graph
    assert sum(node.op_type == "LpNormalization" for node in graph.node) == 1
    assert [entry.name for entry in (*graph.input, *graph.output)] == [
        "input_ids",
        "attention_mask",
        HIDDEN,
        OUTPUT,
    ]


def test_int32_inputs_are_cast(model, folder, exported, tmp_path):
    for entry in model.graph.input:
        entry.type.tensor_type.elem_type = TensorProto.INT32
        for node in model.graph.node:
            node.input[:] = [f"{name}.wide" if name == entry.name else name for name in node.input]
    casts = [
        helper.make_node("Cast", [entry.name], [f"{entry.name}.wide"], to=TensorProto.INT64)
        for entry in model.graph.input
    ]
    insert(model, *casts)
    save(model, folder)
    assert difference(import_folder(folder, tmp_path / "out"), exported["fp32"]) <= FP32_MAX_ABS_DIFF


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
def test_token_types_are_zero(model, folder, exported, tmp_path, kind):
    """In this graph, any other token type would change all hidden states."""
    model.graph.input.append(value("token_type_ids", ["n", "width"], kind))
    axis = numpy_helper.from_array(np.array([2]), "last")
    model.graph.initializer.append(axis)
    model.graph.node[-1].output[0] = "untyped"
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["token_type_ids"], ["types"], to=TensorProto.FLOAT),
            helper.make_node("Cos", ["types"], ["sign"]),
            helper.make_node("Unsqueeze", ["sign", "last"], ["signs"]),
            helper.make_node("Mul", ["untyped", "signs"], [HIDDEN]),
        ]
    )
    save(model, folder)
    assert difference(import_folder(folder, tmp_path / "out"), exported["fp32"]) <= FP32_MAX_ABS_DIFF


def test_local_functions_are_inlined(model, folder, exported, tmp_path):
    """PyTorch's newer exporter wraps modules in local functions."""
    same = helper.make_node("Identity", ["x"], ["y"])
    opset = helper.make_opsetid("", model.opset_import[0].version)
    model.functions.append(helper.make_function("here", "Same", ["x"], ["y"], [same], [opset]))
    model.opset_import.append(helper.make_opsetid("here", 1))
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Same", "here"
    save(model, folder)
    assert difference(import_folder(folder, tmp_path / "out"), exported["fp32"]) <= FP32_MAX_ABS_DIFF


def with_text_output(model, source):
    """Add a node for sentence_embedding, three times the source; rename the original one to `embedding`."""
    for node in model.graph.node:
        node.output[:] = ["embedding" if name == OUTPUT else name for name in node.output]
    model.graph.node.append(helper.make_node("Mul", [source, "three"], [OUTPUT]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(3), "three"))
    return value(OUTPUT, ["n", 64], TensorProto.FLOAT)


def test_a_pooled_output_is_used_if_it_is_the_only_one(model, folder, exported, tmp_path):
    model.graph.output[0].CopyFrom(with_text_output(model, "embedding"))
    save(model, folder)
    artifact = import_folder(folder, tmp_path / "out")
    assert difference(artifact, exported["fp32"]) <= FP32_MAX_ABS_DIFF
    assert artifact.manifest.recipe["output"] == OUTPUT


def test_the_import_adds_pooling_to_token_embeddings(model, folder, exported, tmp_path):
    """A pooled output of the graph is ignored, because it may use another pooling mode."""
    model.graph.node[-1].output[0] = model.graph.output[0].name = "token_embeddings"
    model.graph.output.insert(0, with_text_output(model, "positions.weight"))
    save(model, folder)
    assert difference(import_folder(folder, tmp_path / "out"), exported["fp32"]) <= FP32_MAX_ABS_DIFF


def test_fp16_states_fail_the_fp32_gate(model, folder, tmp_path):
    model.graph.node[-1].CopyFrom(helper.make_node("Cast", ["states"], [HIDDEN], to=TensorProto.FLOAT16))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    save(model, folder)
    with pytest.raises(FidelityError, match=r"max_abs_diff \d\.\d+e-0[45], allowed 1e-05"):
        import_folder(folder, tmp_path / "out")


def change_opset(model):
    model.opset_import[0].version = 11


def add_position_ids(model):
    model.graph.input.append(value("position_ids", ["n", "width"]))


def drop_the_mask(model):
    del model.graph.input[1]


def give_the_mask_as_float(model):
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.FLOAT


def fix_the_width(model):
    model.graph.input[0].CopyFrom(value("input_ids", ["n", 128]))


def give_logits(model):
    model.graph.node[-1].output[0] = model.graph.output[0].name = "logits"


def give_wider_states(model):
    model.graph.output[0].CopyFrom(value("last_hidden_state", ["n", "width", 128], TensorProto.FLOAT))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_opset, "has opset 11; expected 13 or later"),
        (add_position_ids, r"has the inputs input_ids, attention_mask, position_ids\. Expected"),
        (drop_the_mask, r"has the inputs input_ids\. Expected input_ids, attention_mask and"),
        (give_the_mask_as_float, r"has the input attention_mask of type TensorProto\.FLOAT; expected int64"),
        (fix_the_width, r"has the input input_ids with a fixed size \(\[128\]\)"),
        (give_logits, "has the outputs logits; expected one of last_hidden_state"),
        (give_wider_states, "has outputs of dimension 128, but the checkpoint has 64"),
    ],
)
def test_a_graph_with_another_interface_is_rejected(model, folder, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr("koe5_export.artifact_writer.expect", lambda *arguments: None)
    change(model)
    save(model, folder)
    with pytest.raises(InputError, match=rf"model\.onnx {message}"):
        import_folder(folder, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == [folder.name]


def test_a_normalized_output_is_rejected_for_other_contracts(model, folder, tmp_path, monkeypatch):
    """The checkpoint does not normalize. Cosines would not detect that the graph does."""
    monkeypatch.setattr("koe5_export.artifact_writer.expect", lambda *arguments: None)
    with edited(folder / "modules.json") as modules:
        del modules[2:]
    model.graph.output[0].CopyFrom(with_text_output(model, "embedding"))
    save(model, folder)
    with pytest.raises(InputError, match=r"expected one of last_hidden_state, token_embeddings\."):
        import_folder(folder, tmp_path / "out")


def test_a_file_that_is_not_onnx_is_named(folder, tmp_path):
    (folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError, match=r"model\.onnx cannot be read as ONNX"):
        import_folder(folder, tmp_path / "out")


def test_missing_external_data_is_named(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("koe5_export.artifact_writer.expect", lambda *arguments: None)
    save(model, folder, save_as_external_data=True, location="model.onnx_data")
    (folder / "onnx" / "model.onnx_data").unlink()
    with pytest.raises(InputError, match=r"the data of words\.weight cannot be read"):
        import_folder(folder, tmp_path / "out")


def test_a_folder_without_graph_lists_its_onnx_files(folder, tmp_path):
    with pytest.raises(InputError, match=r"has no onnx/model\.onnx or model\.onnx\. It has no \.onnx file"):
        import_folder(folder, tmp_path / "out")
    (folder / "model_O2.onnx").touch()
    with pytest.raises(InputError, match=r"--file with one of model_O2\.onnx"):
        import_folder(folder, tmp_path / "out")
    with pytest.raises(InputError, match="is not a folder"):
        import_folder(folder / "nothing", tmp_path / "out")


def test_an_import_requires_the_checkpoint(model, folder, exported, seeded, tmp_path):
    save(model, folder, "model_O2.onnx")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"must be measured against its PyTorch checkpoint\. .* --checkpoint"
    ):
        import_folder(folder, tmp_path / "out", ImportOptions(file="model_O2.onnx"))
    artifact = import_folder(
        folder, tmp_path / "out", ImportOptions(file="model_O2.onnx", checkpoint=str(seeded))
    )
    assert artifact.manifest.source == exported["fp32"].manifest.source
    assert difference(artifact, exported["fp32"]) <= FP32_MAX_ABS_DIFF


def test_another_checkpoint_fails_the_gate(model, folder, tmp_path):
    save(model, folder)
    write_seeded_checkpoint(tmp_path / "other", Size(2, 64, 4, 128, 1200), seed=1)
    with pytest.raises(FidelityError, match="cosine_min"):
        import_folder(folder, tmp_path / "out", ImportOptions(checkpoint=tmp_path / "other"))
    assert not (tmp_path / "out").exists()


def test_the_contract_comes_from_the_checkpoint(model, folder, seeded, tmp_path):
    save(model, folder)
    checkpoint = shutil.copytree(seeded, tmp_path / "other")
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (checkpoint / name).unlink()
    (checkpoint / "1_Pooling/config.json").unlink()
    options = ImportOptions(checkpoint=checkpoint, like="nlpai-lab/KoE5")
    with pytest.warns(CheckpointWarning, match="does not normalize"):
        known = import_folder(folder, tmp_path / "known", options)
    assert known.manifest.contract.pooling == "mean"
    with pytest.raises(CheckpointError, match="does not record its pooling"):
        import_folder(folder, tmp_path / "unknown", ImportOptions(checkpoint=checkpoint))


def with_node(op, **attributes):
    def change(model):
        model.graph.node.append(helper.make_node(op, ["states"], ["more"], **attributes))

    return change


def with_weight(kind):
    def change(model):
        model.graph.initializer.append(helper.make_tensor("half", kind, [1, 1], b"\0\0", raw=True))

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda model: None, "fp32"),
        (with_node("DynamicQuantizeLinear"), "int8"),
        (with_node("QLinearMatMul"), "int8"),
        (with_node("MatMulNBits", bits=8), "int8-block"),
        (with_node("MatMulNBits", bits=4), "int4-block"),
        (with_node("MatMulNBits"), "int4-block"),
        (with_weight(TensorProto.FLOAT16), "fp16"),
        (with_weight(TensorProto.BFLOAT16), "bf16"),
    ],
)
def test_precision_is_detected_in_the_graph(model, tmp_path, change, expected):
    change(model)
    onnx.save(model, tmp_path / "model.onnx")
    assert detect_precision(tmp_path / "model.onnx") == expected


def test_precision_is_detected_in_branches(exported, tmp_path):
    model = onnx.load(exported["fp32"].graph)
    branch = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    branch.node[0].op_type = "QAttention"
    onnx.save(model, tmp_path / "model.onnx")
    assert detect_precision(tmp_path / "model.onnx") == "int8"


def test_a_precision_without_a_gate_is_rejected(model, folder, tmp_path):
    with_weight(TensorProto.BFLOAT16)(model)
    save(model, folder)
    with pytest.raises(InputError, match=r"for the precision bf16 of .*--precision with one of fp32"):
        import_folder(folder, tmp_path / "out")
    artifact = import_folder(folder, tmp_path / "out", ImportOptions(precision="fp32"))
    assert artifact.manifest.recipe["detected_precision"] == "bf16"


def without_branches(model):
    """Replace each If node by its branch with masked attention, because the quantizer ignores branches."""
    for node in model.graph.node:
        if node.op_type == "If":
            branch = next(entry.g for entry in node.attribute if entry.name == "else_branch")
            (attention,) = branch.node
            attention.output[0] = node.output[0]
            node.CopyFrom(attention)


@pytest.mark.slow
def test_dynamic_int8_of_onnxruntime_fails_the_gate(minilm, exported_minilm, tmp_path):
    """Dynamic int8 has one scale per batch, so an embedding depends on the other texts of the batch."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    folder = shutil.copytree(minilm, tmp_path / "folder")
    model = onnx.load(exported_minilm["fp32"].graph)
    without_branches(model)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "sentence_embedding"
    save(model, tmp_path, "fp32.onnx")
    settings = {"DefaultTensorType": TensorProto.FLOAT}
    quantization.quantize_dynamic(
        tmp_path / "fp32.onnx", folder / "model.onnx", per_channel=True, extra_options=settings
    )
    with pytest.raises(FidelityError, match=r"batch_cosine_min 0\.9\d+, allowed 0\.99999") as caught:
        import_folder(folder, tmp_path / "out")
    mean = float(re.search(r"min [\d.]+, mean ([\d.]+)", str(caught.value))[1])
    assert mean >= IMPORTED_INT8_COSINE_MEAN
    assert not (tmp_path / "out").exists()


def test_the_command_line(model, folder, tmp_path, capsys):
    save(model, folder)
    out = tmp_path / "out"
    assert main(["import", str(folder), str(out), "--gate", "cosine_min=0.9999999"]) == 0
    assert "fp32" in capsys.readouterr().out
    assert main(["verify", str(out), "--checkpoint", str(folder)]) == 0
    assert main(["import", str(folder), str(out)]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["import", str(folder), str(out), "--force", "--precision", "int3"]) == 1
    assert "no gate is known for the precision int3" in capsys.readouterr().err
