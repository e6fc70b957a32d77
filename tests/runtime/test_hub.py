"""huggingface_hub's own client downloads artifacts from a minimal Hub on the loopback interface."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, REPOSITORY, Hub, serving, settings

from koe5_onnx.artifact import GRAPHS, MANIFEST, weights_of

WEIGHTS = weights_of(GRAPHS["int8"])


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file by its path relative to the folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


OPEN = """
import sys
from koe5_onnx import Embedder, Koe5Error

try:
    with Embedder.open(sys.argv[1], revision=sys.argv[2] or None, threads=1) as embedder:
        print(embedder.artifact.path.name, embedder.encode(["가나다"]).tobytes().hex())
except Koe5Error as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def hub(artifact_path: Path) -> Iterator[Hub]:
    files = contents(artifact_path)
    with serving({**files, "README.md": b"# read me", "model.safetensors": b"not wanted"}) as hub:
        yield hub


@pytest.fixture
def open_from(run_python, tmp_path: Path) -> Callable[..., str]:
    """Return a function that opens a Hub id in a separate process and returns the output.

    huggingface_hub reads its settings when it is imported, so they cannot be changed in this process.
    """

    def run(endpoint: str, name: str = REPOSITORY, revision: str = "", offline: bool = False) -> str:
        done: subprocess.CompletedProcess[str] = run_python(
            OPEN, name, revision, **settings(endpoint, tmp_path / "hf", offline)
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def expected(embedder) -> str:
    """Return the output of OPEN after success."""
    return f"{COMMIT} {embedder.encode(['가나다']).tobytes().hex()}"


@pytest.mark.parametrize("revision", ["", "main", "v1", COMMIT])
def test_opens_what_the_hub_has(hub, open_from, artifact_path, expected, revision):
    assert open_from(hub.endpoint, revision=revision) == expected
    assert sorted(hub.fetched) == sorted(contents(artifact_path))


def test_second_time_from_the_cache(hub, open_from, expected):
    assert open_from(hub.endpoint) == expected
    hub.fetched.clear()
    assert open_from(hub.endpoint) == expected
    assert open_from(hub.endpoint, offline=True) == expected
    assert hub.fetched == []


def test_offline_without_cache(hub, open_from):
    output = open_from(hub.endpoint, offline=True)
    assert output.startswith(
        f"ArtifactError: {REPOSITORY} is not a local folder, and koe5-onnx cannot download "
    )
    assert "HF_HUB_OFFLINE" in output
    assert hub.fetched == []


def test_unknown_repository(hub, open_from):
    output = open_from(hub.endpoint, name="nobody/nothing")
    assert output.startswith("ArtifactError: nobody/nothing is not a local folder, and koe5-onnx ")
    assert "cannot download nobody/nothing from the Hub" in output


def test_unknown_revision(hub, open_from):
    output = open_from(hub.endpoint, revision="v9")
    assert output.startswith("ArtifactError: ")
    assert f"cannot download {REPOSITORY} at revision v9 from the Hub" in output


def test_server_down(open_from):
    # Nothing listens on port 9 (discard) of the loopback interface.
    output = open_from("http://127.0.0.1:9")
    assert output.startswith(f"ArtifactError: {REPOSITORY} is not a local folder")
    assert "Check the name, the network" in output


def test_a_transfer_that_breaks_off(hub, open_from):
    hub.break_off = WEIGHTS
    assert open_from(hub.endpoint).startswith("ArtifactError: ")


def test_a_repository_without_an_artifact(hub, open_from):
    del hub.files[MANIFEST]
    assert "has no manifest.json. Pass a folder created by koe5-onnx export" in open_from(hub.endpoint)


def test_bytes_that_changed_on_the_way(hub, open_from):
    content = bytearray(hub.files[WEIGHTS])
    content[1000] ^= 1
    hub.files[WEIGHTS] = bytes(content)
    assert f"{WEIGHTS} differs from the manifest" in open_from(hub.endpoint)
