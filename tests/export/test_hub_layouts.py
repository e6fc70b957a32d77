"""Downloads from Hub repositories with the file names of real models.

The names were listed without access to the Hub, so some may be missing or outdated. The weights are small and
seeded. Files that must not be downloaded contain a line of text.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hub_server import COMMIT, serving, settings
from koe5_export.seeded import Size, write_seeded_checkpoint
from safetensors.torch import load_file, save

torch = pytest.importorskip("torch")

OPEN = """
import hashlib, json, sys
from koe5_export.checkpoint import Checkpoint
from koe5_onnx import Koe5Error

try:
    checkpoint = Checkpoint.open(sys.argv[1])
    read = {name: hashlib.sha256(checkpoint.read(name)).hexdigest() for name in checkpoint.config.shapes}
    print(json.dumps({"read": read, "revision": checkpoint.revision}))
except Koe5Error as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""
TOKENIZER = ["sentencepiece.bpe.model", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
MODULES = [".gitattributes", "1_Pooling/config.json", "README.md", "config.json", "modules.json"]
MODULES += ["sentence_bert_config.json", *TOKENIZER]
ONNX = [f"onnx/{name}" for name in ("config.json", "model.onnx", *TOKENIZER)]
E5_ONNX = [*ONNX, "onnx/model_O4.onnx", "onnx/model_qint8_avx512_vnni.onnx"]
OPENVINO = [
    f"openvino/openvino_model{kind}.{end}" for kind in ("", "_qint8_quantized") for end in ("bin", "xml")
]
SMALL_FILES = {
    "1_Pooling/config.json",
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@dataclass(frozen=True)
class Layout:
    """Contents of a repository."""

    files: list[str]
    weights: str
    model_type: str = "xlm-roberta"
    positions: int = 514
    dtype: str = "float32"
    position_ids: bool = False
    """True if the tensors include the buffer that transformers stored before 4.31."""


LAYOUTS = {
    "BAAI/bge-m3": Layout(
        [
            *MODULES,
            *ONNX,
            "colbert_linear.pt",
            "config_sentence_transformers.json",
            *(f"imgs/{name}" for name in (".DS_Store", "bm25.jpg", "long.jpg", "miracl.jpg", "mkqa.jpg")),
            *(f"imgs/{name}" for name in ("nqa.jpg", "others.webp")),
            "long.jpg",
            "onnx/Constant_7_attr__value",
            "onnx/model.onnx_data",
            "pytorch_model.bin",
            "sparse_linear.pt",
        ],
        "pytorch_model.bin",
        positions=8194,
    ),
    "nlpai-lab/KURE-v1": Layout(
        [*MODULES, "config_sentence_transformers.json", "model.safetensors"],
        "model.safetensors",
        positions=8194,
    ),
    "intfloat/multilingual-e5-small": Layout(
        [*MODULES, *E5_ONNX, *OPENVINO, "model.safetensors", "pytorch_model.bin"],
        "model.safetensors",
        model_type="bert",
        positions=512,
        position_ids=True,
    ),
    "intfloat/multilingual-e5-base": Layout(
        [*MODULES, *E5_ONNX, *OPENVINO, "model.safetensors", "pytorch_model.bin"],
        "model.safetensors",
        position_ids=True,
    ),
    "intfloat/multilingual-e5-large": Layout(
        [*MODULES, *E5_ONNX, *OPENVINO, "onnx/model.onnx_data", "model.safetensors", "pytorch_model.bin"],
        "model.safetensors",
        position_ids=True,
    ),
    "intfloat/multilingual-e5-large-instruct": Layout(
        [
            *MODULES,
            *ONNX,
            "config_sentence_transformers.json",
            "onnx/model.onnx_data",
            "model.safetensors",
        ],
        "model.safetensors",
        dtype="float16",
    ),
    "Snowflake/snowflake-arctic-embed-l-v2.0": Layout(
        [
            *MODULES,
            *(f"onnx/model{kind}.onnx" for kind in ("", "_bnb4", "_fp16", "_int8", "_q4", "_q4f16")),
            *(f"onnx/model{kind}.onnx" for kind in ("_quantized", "_uint8")),
            "config_sentence_transformers.json",
            "model.safetensors",
            "onnx/model.onnx_data",
        ],
        "model.safetensors",
        positions=8194,
    ),
}


def seeded_files(folder, layout):
    """Return the files of a seeded checkpoint without weights, and its tensors with those of a pooler."""
    size = Size(1, 32, 2, 64, 1200, model_type=layout.model_type, positions=layout.positions)
    write_seeded_checkpoint(folder, size)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors = {name: value.to(getattr(torch, layout.dtype)) for name, value in tensors.items()}
    tensors |= {"pooler.dense.weight": torch.zeros(32, 32), "pooler.dense.bias": torch.zeros(32)}
    if layout.position_ids:
        tensors["embeddings.position_ids"] = torch.arange(layout.positions)[None]
    small = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return small, tensors


def weight_bytes(name, tensors, folder):
    if name.endswith(".safetensors"):
        return save(tensors, {"format": "pt"})
    torch.save(tensors, folder / "saved.bin")
    return (folder / "saved.bin").read_bytes()


def sharded(name, tensors, folder):
    """Return two shards and their index: contents by file name."""
    names = sorted(tensors)
    stem, _, end = name.rpartition(".")
    parts = {f"{stem}-0000{part + 1}-of-00002.{end}": names[part::2] for part in range(2)}
    shards = {
        file: weight_bytes(file, {key: tensors[key] for key in part}, folder) for file, part in parts.items()
    }
    index = {"metadata": {}, "weight_map": {key: file for file, part in parts.items() for key in part}}
    return {**shards, f"{name}.index.json": json.dumps(index).encode()}


def digests(tensors):
    """Return the SHA-256 of each tensor that the encoder needs, converted to float32."""
    return {
        name: hashlib.sha256(value.float().numpy()).hexdigest()
        for name, value in tensors.items()
        if not name.startswith("pooler") and not name.endswith("position_ids")
    }


@pytest.fixture
def open_from(tmp_path):
    def run(hub, offline=False):
        env = {**os.environ, **settings(hub.endpoint, tmp_path / "hf", offline)}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-c", OPEN, hub.repository]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("repository", LAYOUTS)
def test_only_the_needed_files_of_a_layout_are_downloaded(repository, open_from, tmp_path):
    layout = LAYOUTS[repository]
    small, tensors = seeded_files(tmp_path / "seeded", layout)
    files = {name: small.get(name, f"{name}: not wanted".encode()) for name in layout.files}
    files |= {
        "README.md": b"---\nlicense: mit\n---\n",
        layout.weights: weight_bytes(layout.weights, tensors, tmp_path),
    }
    with serving(files, repository) as hub:
        opened = open_from(hub)
        assert opened == {"read": digests(tensors), "revision": COMMIT}
        assert sorted(hub.fetched) == sorted(SMALL_FILES & files.keys() | {layout.weights})
        hub.fetched.clear()
        assert open_from(hub, offline=True) == opened
        assert hub.fetched == []


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_downloaded_by_their_index(name, open_from, tmp_path):
    small, tensors = seeded_files(tmp_path / "seeded", Layout([], name))
    shards = sharded(name, tensors, tmp_path)
    unwanted = {
        "onnx/model.onnx": b"not wanted",
        "tf_model.h5": b"not wanted",
        "optimizer.bin": b"not wanted",
    }
    if name == "model.safetensors":
        unwanted |= {"pytorch_model.bin": b"not wanted", "pytorch_model-00001-of-00001.bin": b"not wanted"}
    with serving({**small, **shards, **unwanted}) as hub:
        opened = open_from(hub)
        assert opened["read"] == digests(tensors)
        assert sorted(hub.fetched) == sorted({*small, *shards})
        assert open_from(hub, offline=True) == opened


def test_all_settings_files_are_downloaded(open_from, tmp_path):
    small, tensors = seeded_files(tmp_path / "seeded", Layout([], "model.safetensors"))
    kinds = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    wanted = [f"sentence_{kind}_config.json" for kind in kinds]
    wanted += [
        "0_Transformer/config.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "added_tokens.json",
    ]
    wanted += ["2_Normalize/config.json", "adapter_config.json", "README.md"]
    unwanted = ["modeling.py", "2_Dense/pytorch_model.bin", "onnx/config.json", "openvino/config.json"]
    unwanted += ["flax_model.msgpack", "rust_model.ot", "training_args.bin", "onnx/model.safetensors"]
    # The contents differ, because the client downloads equal files once.
    files = {**{name: json.dumps({"name": name}).encode() for name in (*wanted, *unwanted)}, **small}
    files["model.safetensors"] = weight_bytes("model.safetensors", tensors, tmp_path)
    with serving(files) as hub:
        assert "are an adapter for another checkpoint" in open_from(hub)["error"]  # read after the download
        assert sorted(hub.fetched) == sorted({*wanted, *small, "model.safetensors"})


def test_a_repository_without_pytorch_weights_is_rejected(open_from, tmp_path):
    small, _ = seeded_files(tmp_path / "seeded", Layout([], ""))
    with serving({**small, "tf_model.h5": b"not wanted", "onnx/model.onnx": b"not wanted"}) as hub:
        assert "has no weights. Expected model.safetensors" in open_from(hub)["error"]
        assert set(hub.fetched) == set(small)
