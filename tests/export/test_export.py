import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.seeded import Size, write_seeded_checkpoint

from koe5_onnx import Artifact, CheckpointError, Embedder, FidelityError, InputError

IMPOSSIBLE = {"cosine_min": 1.0, "cosine_mean": 1.0}


@pytest.fixture
def checkpoint(seeded):
    return Checkpoint.open(seeded)


def test_the_manifest_survives_the_disk(exported):
    for artifact in exported.values():
        assert Artifact.open(artifact.path).manifest == artifact.manifest


def test_the_same_checkpoint_gives_the_same_artifact(checkpoint, exported, tmp_path):
    again = export_checkpoint(checkpoint, tmp_path / "again", ExportOptions(precision="int8"))
    assert again.manifest.files == exported["int8"].manifest.files


@pytest.mark.parametrize("step", ["reference", "layers", "measure"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_export_leaves_nothing(checkpoint, tmp_path, step, error):
    def interrupt(name, done, total):
        if name == step:
            raise error

    with pytest.raises(error):
        export_checkpoint(checkpoint, tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_unproved_artifact_is_not_published(checkpoint, tmp_path):
    with pytest.raises(FidelityError):
        export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(precision="int8", gate=IMPOSSIBLE))
    assert list(tmp_path.iterdir()) == []


def test_force_keeps_the_old_artifact_until_the_new_one_is_proved(checkpoint, exported, tmp_path):
    out = shutil.copytree(exported["fp32"].path, tmp_path / "out")
    with pytest.raises(InputError, match="--force"):
        export_checkpoint(checkpoint, out)
    with pytest.raises(FidelityError):
        export_checkpoint(checkpoint, out, ExportOptions(precision="int8", force=True, gate=IMPOSSIBLE))
    assert Artifact.open(out).manifest.precision == "fp32"
    export_checkpoint(checkpoint, out, ExportOptions(precision="int8", force=True))
    assert Artifact.open(out).manifest.precision == "int8"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_removes_nothing_but_artifacts(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no artifact"):
        export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(force=True))
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_a_full_disk_is_found_before_the_work(checkpoint, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="MB free"):
        export_checkpoint(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_another_model_is_refused(seeded, minilm, tmp_path):
    folder = shutil.copytree(seeded, tmp_path / "checkpoint")
    shutil.copy(minilm / "tokenizer.json", folder)
    with pytest.raises(CheckpointError, match="do not belong together"):
        export_checkpoint(Checkpoint.open(folder), tmp_path / "out")


def test_an_unknown_precision_is_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match="fp32, int8"):
        export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(precision="int2"))


def test_given_texts_are_measured_too(checkpoint, exported, tmp_path):
    options = ExportOptions(verification=("하나", "둘"))
    found = export_checkpoint(checkpoint, tmp_path / "out", options).manifest.certificate
    assert found.overall.texts == exported["fp32"].manifest.certificate.overall.texts + 2


def test_an_exported_artifact_embeds(exported):
    for artifact in exported.values():
        with Embedder.open(artifact.path) as embedder:
            assert embedder.encode_queries(["수도는?"]).shape == (1, artifact.manifest.contract.dim)


MEASURE = """
import resource, sys
from pathlib import Path
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import read_contract
from koe5_export.export import ExportOptions, _write
checkpoint = Checkpoint.open(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
contract, options = read_contract(checkpoint), ExportOptions(precision="fp32")
_write(checkpoint, contract, options, Path(sys.argv[2]), lambda *_: None)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_weights_are_streamed(tmp_path):
    """A table of 256 MB passes through in a fraction of its size."""
    checkpoint = tmp_path / "wide"
    write_seeded_checkpoint(checkpoint, Size(1, 256, 4, 256, 250_000))
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", MEASURE, str(checkpoint), str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    assert int(printed) < 100e6
