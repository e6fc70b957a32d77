"""Tensor names that transformers loads are accepted, and others are rejected.

`table` is the behavior of transformers 4.57.6 and 5.23.0. A checkpoint is also rejected if these versions
differ, or if they would give a tensor random values without an error.
"""

import json
import shutil

import numpy as np
import pytest
from koe5_export.checkpoint import Checkpoint
from koe5_export.seeded import Size, write_seeded_checkpoint
from safetensors.numpy import load_file, save_file

from koe5_onnx import CheckpointError

WORDS = "embeddings.word_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
NORM = "embeddings.LayerNorm.weight"
OWN = {"xlm-roberta": "roberta.", "roberta": "roberta.", "bert": "bert."}
FOREIGN = ("model.", "module.", "0.auto_model.", "xlm_roberta.", "encoder.")


def prefixed(prefix):
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


def gamma(tensors):
    return renamed("Norm.weight", "Norm.gamma")(renamed("Norm.bias", "Norm.beta")(tensors))


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def also(**extra):
    return lambda tensors: {**tensors, **{name.replace("__", "."): value for name, value in extra.items()}}


def encoder_prefixed(prefix):
    return lambda tensors: {
        prefix + name if name.startswith("encoder") else name: value for name, value in tensors.items()
    }


def masked_lm(prefix):
    """Return a function that converts tensors to those of a masked language model with tied embeddings."""
    head = {"lm_head.bias": np.zeros(900, np.float32), "lm_head.dense.weight": np.zeros((32, 32), np.float32)}
    return lambda tensors: {**prefixed(prefix)(tensors), **head, "lm_head.decoder.weight": tensors[WORDS]}


def untied(tensors):
    return {**without(WORDS)(tensors), "lm_head.decoder.weight": tensors[WORDS]}


def both(prefix):
    return lambda tensors: {**tensors, **{prefix + name: value + 1 for name, value in tensors.items()}}


BUFFERS = also(embeddings__position_ids=np.arange(514)[None], embeddings__token_type_ids=np.zeros((1, 514)))
HEADS = also(pooler__dense__bias=np.zeros(32, np.float32), classifier__weight=np.ones((2, 32), np.float32))


def table():
    for model_type, own in OWN.items():
        other = "bert." if own == "roberta." else "roberta."
        loaded = {
            "plain": dict,
            "own prefix": prefixed(own),
            "gamma": gamma,
            "own prefix, gamma": lambda tensors, own=own: prefixed(own)(gamma(tensors)),
            "one gamma": renamed(NORM, "embeddings.LayerNorm.gamma"),
            "buffers": BUFFERS,
            "heads": HEADS,
            "masked LM": masked_lm(own),
            "a copy with another prefix": both(other),
        }
        refused = {
            **{f"prefix {prefix}": prefixed(prefix) for prefix in (other, own * 2, *FOREIGN)},
            "some with own prefix": encoder_prefixed(own),
            "a copy with own prefix": both(own),
            "weight and gamma": lambda tensors: {**tensors, "embeddings.LayerNorm.gamma": tensors[NORM] + 1},
            "layer_norm": renamed("LayerNorm", "layer_norm"),
            "norm": renamed("LayerNorm", "norm"),
            "no token types": without(TOKEN_TYPES),
            "words in the head only": untied,
        }
        for expected, cases in ((True, loaded), (False, refused)):
            for name, change in cases.items():
                yield pytest.param(model_type, change, expected, id=f"{model_type}: {name}")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Return the folder of a small checkpoint by model type."""
    folders = {}
    for model_type in OWN:
        folder = folders[model_type] = tmp_path_factory.mktemp("names") / model_type
        is_bert = model_type == "bert"
        built_as, positions = ("bert", 512) if is_bert else ("xlm-roberta", 514)
        write_seeded_checkpoint(folder, Size(1, 32, 2, 64, 1200, model_type=built_as, positions=positions))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    return folders


@pytest.mark.parametrize(("model_type", "change", "loaded"), list(table()))
def test_names_are_accepted_if_transformers_loads_them(checkpoints, tmp_path, model_type, change, loaded):
    folder = shutil.copytree(checkpoints[model_type], tmp_path / "checkpoint")
    written = load_file(folder / "model.safetensors")
    save_file(change(dict(written)), folder / "model.safetensors", {"format": "pt"})
    if not loaded:
        with pytest.raises(CheckpointError, match=r"at random|tensors do not match"):
            Checkpoint(folder, "x", None)
        return
    checkpoint = Checkpoint(folder, "x", None)
    state = transformers_state(folder)
    for name in checkpoint.config.shapes:
        np.testing.assert_array_equal(checkpoint.read(name), written[name])
        np.testing.assert_array_equal(state[name], written[name])


def transformers_state(folder):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from koe5_export.reference import quiet

    with quiet():
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("prefix", FOREIGN)
def test_a_foreign_prefix_is_named(checkpoints, tmp_path, prefix):
    folder = shutil.copytree(checkpoints["bert"], tmp_path / "checkpoint")
    save_file(prefixed(prefix)(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"begin with '{prefix}'.*with 'bert\.' only"):
        Checkpoint(folder, "x", None)


def test_two_names_of_one_tensor_are_both_named(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["bert"], tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, f"bert.{WORDS}": tensors[WORDS]}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{WORDS} and bert\.{WORDS} are the same tensor"):
        Checkpoint(folder, "x", None)
