"""Weights as pytorch_model.bin: supported and rejected files, and memory use."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from koe5_export import export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.tensors import TorchFile, weight_files
from mapped_files import memory_of
from safetensors.numpy import load_file

from koe5_onnx import CheckpointError, MissingDependencyError

torch = pytest.importorskip("torch")
NAME = "encoder.layer.0.intermediate.dense.weight"
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def tensors_of(folder, dtype="float32"):
    stored = load_file(folder / "model.safetensors")
    return {name: torch.from_numpy(value).to(getattr(torch, dtype)) for name, value in stored.items()}


def save(content, file, zipped=True):
    torch.save(content, file, _use_new_zipfile_serialization=zipped)


@pytest.fixture
def folder(folder):
    """Return a checkpoint without its weights."""
    (folder / "model.safetensors").unlink()
    return folder


@FORMATS
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_bin_is_read_as_float32(seeded, folder, dtype, zipped):
    tensors = tensors_of(seeded, dtype)
    save(tensors, folder / "pytorch_model.bin", zipped)
    checkpoint = Checkpoint(folder, "x", None)
    for name in checkpoint.config.shapes:
        found = checkpoint.read(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, tensors[name].float().numpy())
    np.testing.assert_array_equal(checkpoint.read(NAME, slice(3, 9)), tensors[NAME][3:9].float().numpy())
    content = (folder / "pytorch_model.bin").read_bytes()
    assert checkpoint.source().weights_sha256 == hashlib.sha256(content).hexdigest()
    assert checkpoint.parameters == Checkpoint(seeded, "x", None).parameters


@FORMATS
def test_parameters_and_shared_storages_are_read(seeded, folder, zipped):
    tensors = tensors_of(seeded)
    words = "embeddings.word_embeddings.weight"
    tensors |= {
        NAME: torch.nn.Parameter(tensors[NAME].T.contiguous().T),
        "lm_head.decoder.weight": tensors[words],
    }
    save({**tensors, "epoch": 3, "name": "x"}, folder / "pytorch_model.bin", zipped)
    checkpoint = Checkpoint(folder, "x", None)
    for name in (NAME, words):
        np.testing.assert_array_equal(checkpoint.read(name), tensors[name].detach().numpy())


def test_the_artifact_is_the_same_as_from_safetensors(seeded, folder, tmp_path):
    save(tensors_of(seeded), folder / "pytorch_model.bin")
    for checkpoint, out in ((seeded, "safetensors"), (folder, "bin")):
        export_checkpoint(Checkpoint.open(checkpoint), tmp_path / out)
    for name in ("onnx/model.onnx", "onnx/model.onnx_data"):
        assert (tmp_path / "bin" / name).read_bytes() == (tmp_path / "safetensors" / name).read_bytes()


def test_shards_are_read_by_their_index(seeded, folder):
    tensors = tensors_of(seeded)
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in parts.items():
        save({name: tensors[name] for name in part}, folder / file)
    index = {name: file for file, part in parts.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    checkpoint = Checkpoint(folder, "x", None)
    for name in names:
        np.testing.assert_array_equal(checkpoint.read(name), tensors[name].numpy())
    content = b"".join((folder / file).read_bytes() for file in parts)
    assert checkpoint.source().weights_sha256 == hashlib.sha256(content).hexdigest()
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"lacks pytorch_model-00002-of-00002\.bin"):
        Checkpoint(folder, "x", None)


def test_weight_files_have_the_same_precedence_as_in_transformers(folder):
    order = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    order.append("pytorch_model.bin.index.json")
    for name in order:
        shard = name.replace(".index.json", ".shard")
        content = json.dumps({"weight_map": {"x": shard}}) if name.endswith("json") else ""
        (folder / name).write_text(content)
        (folder / shard).touch()
    for name in order:
        assert [file.path.name for file in weight_files(folder)] == [name.replace(".index.json", ".shard")]
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        weight_files(folder)


class Attack:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_bin_is_rejected_and_does_not_run(seeded, folder, tmp_path, kind):
    content = {**tensors_of(seeded), "attack": Attack(tmp_path / "ran")}
    file = folder / "pytorch_model.bin"
    if kind == "pickle":
        file.write_bytes(pickle.dumps(content["attack"], protocol=2))
    else:
        save(content, file, kind == "zip")
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin is damaged, or contains objects other than tensors"
    ) as caught:
        Checkpoint(folder, "x", None)
    assert "mkdir" in str(caught.value)
    assert not (tmp_path / "ran").exists()
    torch.load(file, weights_only=False) if kind != "pickle" else pickle.loads(file.read_bytes())
    assert (tmp_path / "ran").exists()  # the file really is harmful


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, "nested"])
def test_a_bin_without_tensors_by_name_is_rejected(seeded, folder, content):
    save({"state_dict": tensors_of(seeded)} if content == "nested" else content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="without tensors; expected tensors by name"):
        Checkpoint(folder, "x", None)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch deprecates the type
def test_quantized_and_sparse_tensors_are_rejected(seeded, folder):
    tensors = tensors_of(seeded)
    int8 = torch.quantize_per_tensor(tensors[NAME], 0.1, 0, torch.qint8)
    save({**tensors, NAME: int8}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"{NAME} has type torch\.qint8"):
        Checkpoint(folder, "x", None)
    save({**tensors, NAME: tensors[NAME].to_sparse()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"{NAME} has type torch\.sparse_coo"):
        Checkpoint(folder, "x", None)


@FORMATS
@pytest.mark.parametrize("keep", [0, 5, 100, -1000])
def test_a_truncated_bin_is_rejected(seeded, folder, zipped, keep):
    file = folder / "pytorch_model.bin"
    save(tensors_of(seeded), file, zipped)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is damaged"):
        Checkpoint(folder, "x", None)


@FORMATS
@pytest.mark.filterwarnings("ignore::UserWarning")  # warnings of torch about unusual pickles
def test_damage_anywhere_is_a_checkpoint_error(tmp_path, zipped):
    """After random bytes are changed, a file either raises CheckpointError or is still readable."""
    file = tmp_path / "pytorch_model.bin"
    save({f"tensor {number}": torch.arange(400.0) for number in range(3)}, file, zipped)
    intact = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(intact)
        for place in rng.integers(0, min(len(intact), 1500), 3):
            damaged[place] = rng.integers(256)
        file.write_bytes(damaged)
        opened = TorchFile(file)
        try:
            for name in opened.tensors():
                opened.read(name, slice(None))
        except CheckpointError:
            refused += 1
    assert 100 < refused < 300


def test_only_a_bin_requires_torch(seeded, folder, monkeypatch):
    save(tensors_of(seeded), folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    Checkpoint(seeded, "x", None).layer(1)
    with pytest.raises(MissingDependencyError, match=r"reading pytorch_model\.bin.*\[reference\]"):
        Checkpoint(folder, "x", None)


def test_safetensors_are_read_without_importing_torch(seeded):
    code = (
        "import sys\nfrom koe5_export.checkpoint import Checkpoint\n"
        "Checkpoint.open(sys.argv[1]).layer(0)\nprint('torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, str(seeded)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="requires /proc/self/smaps")
def test_mapped_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    """The file is mapped again after each 4 MiB, so at most 5 of the 32 tensors of 1 MiB are resident."""
    monkeypatch.setattr("koe5_export.tensors._MAPPED_BYTES", 4 << 20)
    file = tmp_path / "pytorch_model.bin"
    save({str(number): torch.full((512, 512), float(number)) for number in range(32)}, file)
    opened = TorchFile(file)
    peak = 0
    for number in range(32):
        assert opened.read(str(number), slice(None)).mean() == number
        memory = memory_of(os.getpid(), str(file))
        peak = max(peak, memory.private_bytes + memory.shared_bytes)
    assert 0 < peak < 8 << 20
