import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from edited_json import edited
from koe5_export.checkpoint import Checkpoint
from safetensors.numpy import load_file, save_file

from koe5_onnx import CheckpointError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "checkpoints"


def change_config(folder, **values):
    with edited(folder / "config.json") as config:
        config |= values


def change_weights(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(change(tensors), file)


def test_names_every_missing_or_misshaped_tensor(folder):
    def damage(tensors):
        del tensors["encoder.layer.0.output.dense.bias"]
        tensors["encoder.layer.1.attention.self.key.weight"] = np.zeros((3, 5), np.float32)
        return tensors

    change_weights(folder, damage)
    with pytest.raises(CheckpointError, match="2 tensors") as caught:
        Checkpoint(folder, "x", None)
    assert "encoder.layer.0.output.dense.bias is missing" in str(caught.value)
    assert "encoder.layer.1.attention.self.key.weight has shape (3, 5)" in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "roberta."])
def test_reads_prefixed_names_and_ignores_heads(folder, prefix):
    plain = Checkpoint(folder, "x", None).read("embeddings.LayerNorm.weight")
    change_weights(
        folder,
        lambda t: {
            **{prefix + name: value for name, value in t.items()},
            prefix + "pooler.dense.weight": np.full((64, 64), np.nan, np.float32),
            prefix + "embeddings.position_ids": np.arange(514)[None],
            "classifier.bias": np.ones(2),
        },
    )
    prefixed = Checkpoint(folder, "x", None)
    np.testing.assert_array_equal(prefixed.read("embeddings.LayerNorm.weight"), plain)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_quantized_weights_are_rejected(folder, activation):
    """Graph and reference would both use the integers without scales, and agree on meaningless embeddings."""
    change_config(folder, hidden_act=activation)
    name = "encoder.layer.1.output.dense.weight"

    def quantize(tensors):
        tensors[name] = (tensors[name] * 100).astype(np.int8)
        return tensors

    change_weights(folder, quantize)
    with pytest.raises(CheckpointError, match=f"{name} has type I8"):
        Checkpoint(folder, "x", None, any_encoder=True)


@pytest.mark.parametrize("start", [b"\xff" * 8, (20).to_bytes(8, "little")])
def test_a_corrupt_header_is_rejected(folder, start):
    file = folder / "model.safetensors"
    file.write_bytes(start + file.read_bytes()[8:])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or truncated"):
        Checkpoint(folder, "x", None)


@pytest.mark.parametrize("keep", [0, 5, 100, -1000])
def test_a_truncated_file_is_rejected(folder, keep):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or truncated"):
        Checkpoint(folder, "x", None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_weights_are_rejected_when_they_are_read(folder, value):
    name = "encoder.layer.1.output.dense.weight"

    def poison(tensors):
        tensors[name][3, 4] = value
        return tensors

    change_weights(folder, poison)
    with pytest.raises(CheckpointError, match=name):
        Checkpoint(folder, "x", None).layer(1)


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("tokenizer.json", "AutoTokenizer"),
        ("config.json", "transformers"),
        ("model.safetensors", "pytorch_model.bin"),
    ],
)
def test_a_missing_file_is_named_with_what_to_do(folder, missing, advice):
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=advice):
        Checkpoint(folder, "x", None)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "deberta-v2"},
        {"model_type": None},
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
    ],
)
def test_unsupported_encoders_are_rejected_with_advice(folder, change):
    change_config(folder, **change)
    with pytest.raises(CheckpointError, match=r"config\.json: .*--exporter optimum"):
        Checkpoint(folder, "x", None)


@pytest.mark.parametrize("change", [{"num_hidden_layers": "many"}, {"vocab_size": None}])
def test_a_config_with_a_wrong_type_is_rejected(folder, change):
    change_config(folder, **change)
    with pytest.raises(CheckpointError, match=r"config\.json has a value of the wrong type"):
        Checkpoint(folder, "x", None)


DISTILBERT = {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 96, "vocab_size": 900}
DISTILBERT |= {"model_type": "distilbert", "max_position_embeddings": 128, "pad_token_id": 0}


def test_any_encoder_is_opened_for_tracing(folder):
    (folder / "config.json").write_text(json.dumps(DISTILBERT))
    checkpoint = Checkpoint(folder, "x", None, any_encoder=True)
    stored = load_file(folder / "model.safetensors").values()
    assert checkpoint.parameters == sum(tensor.size for tensor in stored)
    config = checkpoint.config
    assert (config.hidden, config.layers, config.heads, config.intermediate) == (48, 3, 4, 96)
    assert (config.max_tokens, config.buildable) == (128, False)
    without = {name: value for name, value in DISTILBERT.items() if name != "dim"}
    (folder / "config.json").write_text(json.dumps(without))
    with pytest.raises(CheckpointError, match="lacks 'hidden_size'"):
        Checkpoint(folder, "x", None, any_encoder=True)


def test_a_supported_encoder_is_checked_even_for_tracing(folder):
    change_weights(folder, lambda tensors: {"encoder.layer.0.output.dense.bias": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match="tensors do not match"):
        Checkpoint(folder, "x", None, any_encoder=True)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"3", b'{"weight_map": ["a"]}', b"\xff"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_an_invalid_json_file_is_named(folder, name, content):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        Checkpoint(folder, "x", None)


def test_reads_shards(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    halves = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for shard, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / shard)
    index = {name: shard for shard, part in halves.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    file.unlink()
    checkpoint = Checkpoint(folder, "x", None)
    for name in (names[0], names[-1]):
        np.testing.assert_array_equal(checkpoint.read(name), tensors[name])
    content = (folder / "a.safetensors").read_bytes() + (folder / "b.safetensors").read_bytes()
    assert checkpoint.source().weights_sha256 == hashlib.sha256(content).hexdigest()
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks b\.safetensors"):
        Checkpoint(folder, "x", None)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_are_read_as_float32(folder, dtype):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    file = folder / "model.safetensors"
    halves = {name: value.to(getattr(torch, dtype)) for name, value in load_torch(file).items()}
    save_torch(halves, file)
    name = "encoder.layer.0.intermediate.dense.weight"
    checkpoint = Checkpoint(folder, "x", None)
    found = checkpoint.read(name)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, halves[name].float().numpy())
    np.testing.assert_array_equal(checkpoint.read(name, slice(3, 9)), found[3:9])


def test_word_embeddings_are_read_in_blocks(seeded, monkeypatch):
    monkeypatch.setattr("koe5_export.checkpoint._ROWS_PER_READ", 128)
    checkpoint = Checkpoint(seeded, "x", None)
    blocks = list(checkpoint.word_embeddings())
    assert len(blocks) > 5
    np.testing.assert_array_equal(
        np.concatenate(blocks), checkpoint.read("embeddings.word_embeddings.weight")
    )


def test_positions_begin_at_the_pad_row_and_include_the_token_type(seeded):
    stored = load_file(seeded / "model.safetensors")
    table = stored["embeddings.position_embeddings.weight"][1:514]
    expected = table + stored["embeddings.token_type_embeddings.weight"][0]
    np.testing.assert_array_equal(Checkpoint(seeded, "x", None).positions(512), expected)


@pytest.mark.parametrize("name", ["nlpai-lab/KoE5", "someone/a--name"])
def test_the_hub_cache_tells_repository_and_revision(seeded, tmp_path, monkeypatch, name):
    snapshot = tmp_path / f"models--{name.replace('/', '--')}" / "snapshots" / "0123abcd"
    shutil.copytree(seeded, snapshot)
    monkeypatch.chdir(snapshot)
    for folder in (snapshot, "."):
        source = Checkpoint.open(folder).source()
        assert (source.repository, source.revision) == (name, "0123abcd")


def test_the_repository_of_other_folders_is_their_name(seeded):
    source = Checkpoint.open(seeded).source()
    assert (source.repository, source.revision) == (seeded.name, None)
    assert source.weights_sha256 == hashlib.sha256((seeded / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("metadata", "license_", "languages"),
    [
        ("license: mit\nlanguage: [ko, en]", "mit", ("ko", "en")),
        ("license: [mit]\nlanguage: ko", None, ("ko",)),
        ("tags: [a]", None, ()),
    ],
)
def test_license_and_languages_are_those_of_the_model_card(folder, metadata, license_, languages):
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n# Model\n")
    source = Checkpoint.open(folder).source()
    assert (source.license, source.languages) == (license_, languages)


def test_invalid_metadata_of_the_model_card_is_rejected(folder):
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(CheckpointError, match=r"README\.md is not valid YAML .*Correct or remove it"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["no such folder", "a/b/c", "config.json"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_rejected(seeded, monkeypatch, name):
    monkeypatch.chdir(seeded)
    with pytest.raises(CheckpointError, match="neither"):
        Checkpoint.open(name)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real checkpoints' headers are not next to the checkout")
@pytest.mark.parametrize(("name", "max_tokens"), [("bge-m3", 8192), ("xlmr-large-ner", 512)])
def test_real_headers_are_read(name, max_tokens, seeded, tmp_path):
    """The files have the headers of real checkpoints, and a hole instead of weights."""
    for file in ("config.json", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(REAL / name / file, tmp_path)
    shutil.copy(seeded / "tokenizer.json", tmp_path)
    header = json.loads((REAL / name / "model.safetensors.header.json").read_text())
    text = json.dumps(header).encode()
    end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    checkpoint = Checkpoint(tmp_path, name, None)
    assert checkpoint.layer(23).down.weight.shape == (4096, 1024)
    assert checkpoint.read("embeddings.word_embeddings.weight", slice(250_000, None)).shape == (2, 1024)
    config = checkpoint.config
    assert (config.max_tokens, config.layers, config.hidden) == (max_tokens, 24, 1024)
