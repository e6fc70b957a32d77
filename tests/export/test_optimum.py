"""Optimum's exporter, with a version of transformers that it supports. Run these tests by `make optimum`."""

import json
import shutil
import warnings

import numpy as np
import onnx
import pytest
from koe5_export import ExportOptions, ImportOptions, export_checkpoint, import_folder
from koe5_export.checkpoint import Checkpoint
from koe5_export.reference import quiet
from koe5_export.seeded import Size, write_seeded_checkpoint
from koe5_export.texts import text_of_length
from tolerances import FP32_MAX_ABS_DIFF

from koe5_onnx import Artifact, CheckpointError, Embedder, Tokenizer, TruncationWarning
from koe5_onnx.cli import main

pytest.importorskip("optimum.exporters.onnx", reason="the extra optimum is not installed. Run make optimum")

OPTIMUM = ExportOptions(exporter="optimum")
SMALL = {"vocab_size": 1200, "pad_token_id": 1}
WIDE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
DISTIL = {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 128}
OTHERS = {
    "distilbert": (DISTIL, 128),
    "mpnet": ({**WIDE, "max_position_embeddings": 66}, 64),
    "electra": ({**WIDE, "embedding_size": 48, "max_position_embeddings": 128}, 128),
    "xlm-roberta": ({**WIDE, "hidden_act": "gelu_new", "max_position_embeddings": 66}, 64),
}
"""Configuration and expected token limit by model type."""


def other_encoder(model_type, settings, seeded, folder):
    """Write a sentence-transformers checkpoint of an encoder of this model type, with seeded weights."""
    import torch
    from transformers import AutoConfig, AutoModel

    shutil.copytree(seeded, folder)
    for name in ("config.json", "model.safetensors", "sentence_bert_config.json"):
        (folder / name).unlink()
    # The default tokenizer class of the model type would add special tokens that tokenizer.json lacks.
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    tokenizer["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model(model_type, **SMALL, **settings))
    with quiet():
        encoder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def traced(seeded, tmp_path_factory):
    return export_checkpoint(Checkpoint.open(seeded), tmp_path_factory.mktemp("traced") / "out", OPTIMUM)


def embed(artifact):
    limit = artifact.manifest.contract.max_tokens
    tokenizer = Tokenizer(artifact.tokenizer, limit)
    long = [text_of_length(tokenizer, count) for count in (9, 63, 65, limit - 1, limit, 700)]
    with Embedder.open(artifact.path) as embedder, pytest.warns(TruncationWarning):
        return embedder.encode([*long, "", "네", "<pad> typed <pad>", "👋🇰🇷", "a" * 3000])


def test_both_exporters_give_the_same_embeddings(traced, exported):
    found, expected = embed(traced), embed(exported["fp32"])
    assert found.shape == (11, 64)
    np.testing.assert_allclose(found, expected, atol=FP32_MAX_ABS_DIFF, rtol=0)


def test_the_artifact_has_the_usual_interface_and_files(traced, exported):
    assert [file.name for file in traced.path.parent.iterdir()] == ["out"]
    assert set(traced.manifest.files) == set(exported["fp32"].manifest.files)
    graphs = [onnx.load(a.graph, load_external_data=False).graph for a in (traced, exported["fp32"])]
    for found, expected in zip(*((*graph.input, *graph.output) for graph in graphs), strict=True):
        assert found == expected
    outside = [t for t in graphs[0].initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert outside
    assert {entry.value for t in outside for entry in t.external_data if entry.key == "location"} == {
        "model.onnx_data"
    }
    recipe = traced.manifest.recipe
    assert (recipe["exporter"], recipe["optimum-onnx"][:2]) == ("optimum", "0.")
    assert traced.manifest.architecture == exported["fp32"].manifest.architecture


def test_token_types_are_filled_inside_the_graph(tmp_path):
    folder = tmp_path / "bert"
    write_seeded_checkpoint(folder, Size(2, 64, 4, 128, 1200, model_type="bert", positions=512))
    artifacts = [
        export_checkpoint(Checkpoint.open(folder), tmp_path / name, ExportOptions(exporter=name))
        for name in ("optimum", "builder")
    ]
    names = {t.name for t in onnx.load(artifacts[0].graph, load_external_data=False).graph.node}
    assert "token_type_ids" in names
    np.testing.assert_allclose(*map(embed, artifacts), atol=FP32_MAX_ABS_DIFF, rtol=0)


@pytest.mark.parametrize("model_type", OTHERS)
def test_encoders_that_only_optimum_supports(model_type, seeded, tmp_path, capsys):
    settings, max_tokens = OTHERS[model_type]
    folder = other_encoder(model_type, settings, seeded, tmp_path / "checkpoint")
    out = tmp_path / "out"
    assert main(["export", str(folder), str(out)]) == 1
    assert "--exporter optimum" in capsys.readouterr().err
    assert main(["export", str(folder), str(out), "--exporter", "optimum"]) == 0
    manifest = Artifact.open(out).manifest
    assert manifest.contract.max_tokens == max_tokens
    found = manifest.architecture
    assert (found.model_type, found.layers, found.hidden, found.intermediate) == (model_type, 2, 48, 96)
    assert found.parameters > 1200 * 48
    assert manifest.certificate.overall.max_abs_diff <= FP32_MAX_ABS_DIFF
    assert main(["verify", str(out), "--checkpoint", str(folder)]) == 0


def test_an_encoder_that_optimum_does_not_support(seeded, tmp_path):
    settings = {**WIDE, "max_position_embeddings": 66, "languages": ["ko_KR"], "default_language": "ko_KR"}
    folder = other_encoder("xmod", settings, seeded, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"Optimum .* cannot export .*xmod"):
        export_checkpoint(Checkpoint.open(folder, any_encoder=True), tmp_path / "out", OPTIMUM)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def test_a_limit_above_the_positions_is_explained(seeded, tmp_path):
    """MPNet's position ids start at pad_id + 1. The export cannot know this of the invented type "else"."""
    settings = {**WIDE, "max_position_embeddings": 66}
    folder = other_encoder("mpnet", settings, seeded, tmp_path / "checkpoint")
    opened = Checkpoint.open(folder, any_encoder=True)
    object.__setattr__(opened.config, "model_type", "else")
    with pytest.raises(CheckpointError, match="max_seq_length"):
        export_checkpoint(opened, tmp_path / "out", OPTIMUM)


def test_external_data_of_optimum_is_read(traced, seeded, tmp_path, monkeypatch):
    """Optimum writes external data for models above 2 GB."""
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    outside = export_checkpoint(Checkpoint.open(seeded), tmp_path / "out", OPTIMUM)
    assert outside.manifest.files == traced.manifest.files
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_a_folder_that_optimum_wrote_is_imported(model_type, seeded, tmp_path):
    from optimum.exporters.onnx import main_export

    checkpoint = tmp_path / "checkpoint"
    if model_type == "bert":
        write_seeded_checkpoint(checkpoint, Size(2, 64, 4, 128, 1200, model_type="bert", positions=512))
    else:
        other_encoder(model_type, DISTIL, seeded, checkpoint)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main_export(str(checkpoint), output=tmp_path / "folder", task="feature-extraction", dtype="fp32")
    imported = import_folder(tmp_path / "folder", tmp_path / "imported", ImportOptions(checkpoint=checkpoint))
    opened = Checkpoint.open(checkpoint, any_encoder=True)
    traced = export_checkpoint(opened, tmp_path / "traced", OPTIMUM)
    np.testing.assert_array_equal(*map(embed, (imported, traced)))
