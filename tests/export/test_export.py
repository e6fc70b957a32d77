import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from edited_json import edited
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.calibrate import Calibration
from koe5_export.checkpoint import Checkpoint
from koe5_export.foreign_settings import write_foreign_settings
from koe5_export.seeded import Size, write_seeded_checkpoint
from safetensors.numpy import load_file, save_file

from koe5_onnx import (
    Artifact,
    CheckpointError,
    Embedder,
    FidelityError,
    InputError,
    MissingDependencyError,
    Tokenizer,
)

ARTIFACT = [
    "1_Pooling",
    "config.json",
    "config_sentence_transformers.json",
    "manifest.json",
    "modules.json",
    "onnx",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
]
IMPOSSIBLE = {"cosine_min": 1.0, "cosine_mean": 1.0}


@pytest.fixture
def checkpoint(seeded):
    return Checkpoint.open(seeded)


def test_the_same_checkpoint_gives_the_same_artifact(checkpoint, exported, tmp_path):
    again = export_checkpoint(checkpoint, tmp_path / "again", ExportOptions(precision="int8"))
    assert Artifact.open(again.path).manifest == again.manifest
    assert again.manifest.files == exported["int8"].manifest.files


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", "fp32"), ("fp16", "fp16"), ("int8", "q8"), ("int8-block", "int8"), ("int4-block", "q4")],
)
def test_settings_for_other_runtimes(exported, precision, dtype):
    """tests/interop opens an int8 artifact with these settings."""
    artifact = exported[precision]
    config, model = (
        json.loads((artifact.path / name).read_text(encoding="utf-8"))
        for name in ("config.json", "config_sentence_transformers.json")
    )
    assert config["transformers.js_config"] == {"dtype": dtype, "use_external_data_format": True}
    assert config["model_type"] == "xlm-roberta"
    assert model["prompts"] == {"query": "query: ", "passage": "passage: ", "document": "passage: "}


def test_a_checkpoint_without_special_tokens_map(exported, seeded, tmp_path):
    """transformers 5 writes checkpoints without this file, which fastembed requires."""
    encoder, artifact = tmp_path / "encoder", exported["int8"]
    shutil.copytree(seeded, encoder)
    expected = json.loads((encoder / "special_tokens_map.json").read_text(encoding="utf-8"))
    (encoder / "special_tokens_map.json").unlink()
    with edited(encoder / "tokenizer_config.json") as settings:
        settings.update(expected)
    (tmp_path / "out").mkdir()
    write_foreign_settings(encoder, artifact.manifest.contract, "int8", tmp_path / "out")
    assert json.loads((tmp_path / "out/special_tokens_map.json").read_text(encoding="utf-8")) == expected


def test_progress_counts_every_stage_from_zero_to_its_total(checkpoint, tmp_path):
    found = {}

    def report(stage, done, total):
        found.setdefault(stage, []).append((done, total))

    artifact = export_checkpoint(
        checkpoint, tmp_path / "out", ExportOptions(precision="int8"), progress=report
    )
    assert list(found)[:4] == ["reference", "calibrate", "hash", "measure"]
    assert ("measure_packed" in found) == (artifact.manifest.packed_certificate is not None)
    for parts in found.values():
        assert parts[0][0] == 0
        assert parts[-1][0] == parts[-1][1]
        assert all(before <= after for (before, _), (after, _) in pairwise(parts))
        assert len({total for _, total in parts}) == 1
    assert len(found["reference"]) > 10
    assert found["hash"][-1][0] == checkpoint.weight_bytes + artifact.manifest.total_bytes


@pytest.mark.parametrize("at", ["reference", "layers", "hash", "measure"])
@pytest.mark.parametrize("done", [False, True])
def test_an_interrupted_export_leaves_nothing(checkpoint, tmp_path, at, done):
    def interrupt(stage, parts, total):
        if stage == at and parts == total * done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(checkpoint, tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_damaged_checkpoint_leaves_nothing(folder, tmp_path, monkeypatch, precision):
    """The damage is in the last layer, so most of the artifact is written when it is detected."""
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.LayerNorm.bias"][3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    monkeypatch.setattr("koe5_export.artifact_writer.expect", lambda *arguments: None)
    (tmp_path / "to").mkdir()
    with pytest.raises(CheckpointError, match="NaN"):
        export_checkpoint(Checkpoint.open(folder), tmp_path / "to" / "out", ExportOptions(precision))
    assert list((tmp_path / "to").iterdir()) == []


def test_leftovers_of_a_killed_export_are_removed(checkpoint, tmp_path):
    (tmp_path / "out.partial" / "onnx").mkdir(parents=True)
    (tmp_path / "out.partial" / "onnx" / "model.onnx_data").write_bytes(b"half")
    out = export_checkpoint(checkpoint, tmp_path / "out").path
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ARTIFACT


def test_an_unverified_artifact_is_not_published(checkpoint, tmp_path):
    with pytest.raises(FidelityError):
        export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(precision="int8", gate=IMPOSSIBLE))
    assert list(tmp_path.iterdir()) == []


def test_force_keeps_the_old_artifact_until_the_new_one_is_verified(checkpoint, exported, tmp_path):
    out = shutil.copytree(exported["fp32"].path, tmp_path / "out")
    with pytest.raises(InputError, match="--force"):
        export_checkpoint(checkpoint, out)
    with pytest.raises(FidelityError):
        export_checkpoint(checkpoint, out, ExportOptions(precision="int8", force=True, gate=IMPOSSIBLE))
    assert Artifact.open(out).manifest.precision == "fp32"
    export_checkpoint(checkpoint, out, ExportOptions(precision="int8", force=True))
    assert Artifact.open(out).manifest.precision == "int8"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_only_artifacts(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not an artifact"):
        export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(force=True))
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_a_full_disk_is_detected_before_the_work(checkpoint, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="MB free"):
        export_checkpoint(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_another_model_is_rejected(folder, minilm, tmp_path):
    shutil.copy(minilm / "tokenizer.json", folder)
    with pytest.raises(CheckpointError, match="belongs to the weights"):
        export_checkpoint(Checkpoint.open(folder), tmp_path / "out")


def test_an_unknown_precision_is_rejected(checkpoint, tmp_path):
    with pytest.raises(InputError, match="fp32, fp16, int8, int8-block, int4-block"):
        export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(precision="int2"))


def test_an_unknown_exporter_is_rejected(checkpoint, tmp_path):
    with pytest.raises(InputError, match="builder or optimum"):
        export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(exporter="torch"))


def test_optimum_writes_fp32_only(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("koe5_export.export.require_optimum", lambda: None)
    options = ExportOptions(precision="int8", exporter="optimum")
    with pytest.raises(InputError, match="fp32 only"):
        export_checkpoint(checkpoint, tmp_path / "out", options)


def test_a_missing_optimum_names_the_extra(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optimum", None)
    with pytest.raises(MissingDependencyError, match=r"\.\[export,reference,optimum\]"):
        export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(exporter="optimum"))
    assert list(tmp_path.iterdir()) == []


def test_the_builder_rejects_encoders_that_it_does_not_support(folder, tmp_path):
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"gelu"', '"relu"'))
    opened = Checkpoint.open(folder, any_encoder=True)
    with pytest.raises(CheckpointError, match="--exporter optimum"):
        export_checkpoint(opened, tmp_path / "out")


def test_additional_verification_texts_are_measured(checkpoint, exported, tmp_path):
    options = ExportOptions(verification=("하나", "둘"))
    found = export_checkpoint(checkpoint, tmp_path / "out", options).manifest.certificate
    assert found.overall.texts == exported["fp32"].manifest.certificate.overall.texts + 2


def test_calibration_texts_alternate_between_query_and_passage(checkpoint, tmp_path, monkeypatch):
    seen = []

    class Watched(Calibration):
        def __init__(self, checkpoint, ids):
            seen.extend(ids)
            super().__init__(checkpoint, ids)

    monkeypatch.setattr("koe5_export.export.Calibration", Watched)
    options = ExportOptions(precision="int8", calibration=("하나", "둘", "셋"))
    artifact = export_checkpoint(checkpoint, tmp_path / "out", options)
    expected = Tokenizer(artifact.tokenizer, 512).encode(["query: 하나", "passage: 둘", "query: 셋"]).ids
    assert [row.tolist() for row in seen] == [row.tolist() for row in expected]


def test_an_exported_artifact_embeds(exported):
    for artifact in exported.values():
        if "cpu" not in artifact.manifest.target.devices:
            continue
        with Embedder.open(artifact.path) as embedder:
            assert embedder.encode_queries(["수도는?"]).shape == (1, artifact.manifest.contract.dim)


# Uses VmHWM, because the ru_maxrss of a child includes that of its parent, which has imported PyTorch.
MEASURE = """
import re, sys
from itertools import pairwise
from pathlib import Path
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import read_contract
from koe5_export.export import write_graph
from koe5_export.precision import PRECISIONS
from koe5_export.artifact_writer import ArtifactSpec, ArtifactOptions
from koe5_export.settings import write_tokenizer
from koe5_export.texts import CALIBRATION
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
checkpoint = Checkpoint.open(sys.argv[1])
before = peak()
precision = PRECISIONS[sys.argv[3]]
spec = ArtifactSpec(checkpoint, read_contract(checkpoint), precision, ArtifactOptions())
write_tokenizer(checkpoint.folder, Path(sys.argv[2]) / "tokenizer.json")
(Path(sys.argv[2]) / "onnx").mkdir()
write_graph(spec, CALIBRATION, Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
def test_weights_are_streamed(tmp_path):
    """Writing an embedding table of 256 MB takes less than half of its size in memory."""
    checkpoint = tmp_path / "wide"
    write_seeded_checkpoint(checkpoint, Size(1, 256, 4, 256, 250_000))
    for precision in ("fp32", "int8"):
        out = tmp_path / precision
        out.mkdir()
        assert peak_of_writing(checkpoint, out, precision) < 128e6


def peak_of_writing(checkpoint, out, precision):
    command = [sys.executable, "-c", MEASURE, str(checkpoint), str(out), precision]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)


def test_force_restores_the_old_artifact_if_the_rename_fails(checkpoint, exported, tmp_path, monkeypatch):
    out = shutil.copytree(exported["fp32"].path, tmp_path / "out")
    rename = Path.rename

    def fail(path, target):
        if path.name == "out.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(checkpoint, out, ExportOptions(precision="int8", force=True))
    assert Artifact.open(out).manifest.precision == "fp32"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_partial_folder_with_other_files_is_kept(checkpoint, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        export_checkpoint(checkpoint, tmp_path / "out")
    assert (tmp_path / "out.partial" / "thesis.txt").exists()
