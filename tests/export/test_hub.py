"""Export of checkpoints from the Hub, which is simulated by a server on the loopback interface."""

import os
import subprocess
import sys

import pytest
from hub_server import COMMIT, REPOSITORY, serving, settings

EXPORT = """
import sys
from pathlib import Path
from koe5_export import export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_onnx import Koe5Error

try:
    artifact = export_checkpoint(Checkpoint.open(sys.argv[1], sys.argv[2] or None), Path(sys.argv[3]))
    source = artifact.manifest.source
    print(source.repository, source.revision, artifact.manifest.contract.pooling)
except Koe5Error as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def hub(seeded):
    files = {str(file.relative_to(seeded)): file.read_bytes() for file in seeded.rglob("*") if file.is_file()}
    with serving({**files, "pytorch_model.bin": b"not wanted", "onnx/model.onnx": b"not wanted"}) as hub:
        yield hub


@pytest.fixture
def export_from(tmp_path):
    def run(endpoint, name=REPOSITORY, revision="", offline=False, out="out"):
        env = {**os.environ, **settings(endpoint, tmp_path / "hf", offline)}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-c", EXPORT, name, revision, str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.slow
def test_records_the_commit_and_works_offline_afterwards(hub, export_from):
    assert export_from(hub.endpoint, revision="v1") == f"{REPOSITORY} {COMMIT} mean"
    assert {"model.safetensors", "1_Pooling/config.json"} <= set(hub.fetched)
    assert not {"pytorch_model.bin", "onnx/model.onnx"} & set(hub.fetched)
    hub.fetched.clear()
    assert (
        export_from(hub.endpoint, revision="v1", offline=True, out="again") == f"{REPOSITORY} {COMMIT} mean"
    )
    assert hub.fetched == []


def test_a_missing_repository_is_an_error(hub, export_from):
    assert export_from(hub.endpoint, name="nobody/nothing").startswith(
        "HubError: cannot download nobody/nothing"
    )
    assert "HF_HUB_OFFLINE" in export_from(hub.endpoint, offline=True)


def test_an_interrupted_transfer_leaves_nothing(hub, export_from, tmp_path):
    hub.break_off = "model.safetensors"
    assert export_from(hub.endpoint).startswith(("HubError", "CheckpointError"))
    assert not (tmp_path / "out").exists()
