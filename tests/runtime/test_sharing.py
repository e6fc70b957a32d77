"""Processes that share packed weights get equal embeddings, use one copy, and remove unused folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from mapped_files import maps_of, memory_of

import koe5_onnx
from koe5_onnx import Artifact, Embedder, Koe5Warning, SharedWeightsWarning, cli
from koe5_onnx.artifact import GRAPHS, PACKED_CPU_GRAPH, weights_of
from koe5_onnx.engine.graphs import Graph, installed_kernels
from koe5_onnx.engine.shared_weights import kept_bytes, prepare, weight_folders

WEIGHTS = weights_of(GRAPHS["int8"])

needs_kernels = pytest.mark.skipif(isinstance(installed_kernels(), str), reason=str(installed_kernels()))
TEXTS = ["하나", "둘 셋 넷", "다섯 " * 40, ""] * 3
NODES = 8
"""Number of nodes with weights: four in each of the tiny artifact's two layers."""
A_DAY = 24 * 3600
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def layout(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Replace `koe5_onnx_kernels` with a module whose attribute `version` is the version of the layout."""
    module = ModuleType("koe5_onnx_kernels")
    module.version = 7
    module.packed_layout = lambda: module.version
    monkeypatch.setitem(sys.modules, "koe5_onnx_kernels", module)
    return module


def graph_of(artifact: Artifact) -> Graph:
    return Graph(artifact.path / PACKED_CPU_GRAPH, Path("libkernels.so"), "a test's", "packed_cpu")


def packed_files(cache: Path) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of each packed file by name."""
    return {
        file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in cache.glob("packed-weights/*/*")
    }


def embeddings(path: Path, **options: object) -> np.ndarray:
    with Embedder.open(path, threads=1, **options) as embedder, warnings.catch_warnings():
        warnings.simplefilter("error", Koe5Warning)
        return embedder.encode(TEXTS)


@needs_kernels
def test_embeddings_are_the_same_bits(artifact_path: Path, cache: Path) -> None:
    expected = embeddings(artifact_path)
    assert packed_files(cache) == {}
    first = embeddings(artifact_path, share_weights=True)
    files = packed_files(cache)
    assert len(files) == NODES
    second = embeddings(artifact_path, share_weights=True)
    assert packed_files(cache) == files  # mapped, not rewritten
    assert first.tobytes() == second.tobytes() == expected.tobytes()
    (folder,) = weight_folders().iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert kept_bytes() == sum(file.stat().st_size for file in folder.iterdir())


@needs_kernels
def test_a_closed_session_maps_nothing(artifact_path: Path, cache: Path) -> None:
    with Embedder.open(artifact_path, share_weights=True) as embedder:
        assert len(maps_of(os.getpid(), ".packed")) == NODES
        embedder.encode(TEXTS)
    assert maps_of(os.getpid(), ".packed") == set()


@needs_kernels
def test_a_damaged_file_is_replaced(artifact_path: Path, cache: Path) -> None:
    expected = embeddings(artifact_path, share_weights=True)
    (folder,) = weight_folders().iterdir()
    contents = {file: file.read_bytes() for file in sorted(folder.iterdir())}
    cut, changed, *_ = contents
    cut.write_bytes(contents[cut][:100])
    changed.write_bytes(contents[changed][:100] + b"x" + contents[changed][101:])
    assert embeddings(artifact_path, share_weights=True).tobytes() == expected.tobytes()
    assert {file: file.read_bytes() for file in folder.iterdir()} == contents


@needs_kernels
def test_without_a_folder_the_process_keeps_a_private_copy(
    artifact_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = embeddings(artifact_path)
    in_the_way = tmp_path / "file"
    in_the_way.write_bytes(b"")
    monkeypatch.setenv("KOE5_ONNX_CACHE", str(in_the_way))
    with (
        pytest.warns(
            SharedWeightsWarning, match=r"cannot share packed weights .*file.* Fix the cause"
        ) as said,
        Embedder.open(artifact_path, threads=1, share_weights=True) as embedder,
    ):
        assert embedder.encode(TEXTS).tobytes() == expected.tobytes()
    assert len(said) == 1


@needs_kernels
def test_a_file_that_cannot_be_written_is_reported_once(
    artifact_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put a folder in place of each file, so that files cannot be written or replaced, even by root."""
    expected = embeddings(artifact_path, share_weights=True)
    (folder,) = weight_folders().iterdir()
    for file in list(folder.iterdir()):
        file.unlink()
        file.mkdir()
    with (
        pytest.warns(SharedWeightsWarning, match=r"cannot store packed weights in .*\.packed: ") as said,
        Embedder.open(artifact_path, threads=1, share_weights=True) as embedder,
    ):
        assert embedder.encode(TEXTS).tobytes() == expected.tobytes()
    assert len(said) == 1


@needs_kernels
@pytest.mark.skipif(IS_ROOT, reason="root can write everywhere")
def test_a_read_only_folder(artifact_path: Path, cache: Path) -> None:
    expected = embeddings(artifact_path, share_weights=True)
    (folder,) = weight_folders().iterdir()
    folder.chmod(0o500)
    try:
        # All files exist, so nothing is written.
        assert embeddings(artifact_path, share_weights=True).tobytes() == expected.tobytes()
        folder.chmod(0o700)
        next(folder.iterdir()).unlink()
        folder.chmod(0o500)
        with pytest.warns(SharedWeightsWarning, match="Permission denied"):
            Embedder.open(artifact_path, share_weights=True).close()
    finally:
        folder.chmod(0o700)


HOLD = """
import sys
from koe5_onnx import Embedder
embedder = Embedder.open(sys.argv[1], threads=1, share_weights=True)
print(embedder.encode(["서울"]).tobytes().hex(), flush=True)
sys.stdin.readline()
"""


def holding(artifact_path: Path) -> subprocess.Popen[str]:
    """Start a process that embeds a text and runs until its input ends."""
    source = str(Path(koe5_onnx.__file__).resolve().parents[1])
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(artifact_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@needs_kernels
def test_processes_hold_one_copy(artifact_path: Path, cache: Path) -> None:
    """Both processes start at once with an empty cache."""
    with holding(artifact_path) as one, holding(artifact_path) as other:
        with Embedder.open(artifact_path, threads=1) as embedder:
            expected = embedder.encode(["서울"]).tobytes().hex()
        assert [process.stdout.readline().strip() for process in (one, other)] == [expected] * 2
        assert maps_of(one.pid, ".packed") == maps_of(other.pid, ".packed")
        for process in (one, other):
            memory = memory_of(process.pid, ".packed")
            assert memory.private_bytes == 0
            assert memory.shared_bytes >= kept_bytes() - NODES * 4096


@needs_kernels
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_after_a_fork(artifact_path: Path, cache: Path) -> None:
    with Embedder.open(artifact_path, threads=1, share_weights=True) as embedder:
        expected = embedder.encode(TEXTS)
        pid = os.fork()
        if pid == 0:
            os._exit(embedder.encode(TEXTS).tobytes() != expected.tobytes())
        assert os.waitpid(pid, 0)[1] == 0


def test_the_padded_graph_has_nothing_to_share(artifact_path: Path, cache: Path) -> None:
    same = embeddings(artifact_path, graph="padded", share_weights=True)
    assert same.tobytes() == embeddings(artifact_path, graph="padded").tobytes()
    assert packed_files(cache) == {}


@needs_kernels
def test_the_command_line_and_doctor(
    artifact_path: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_text("하나\n둘\n", encoding="utf-8")
    usual = ["--artifact", str(artifact_path), "--prompt-name", "none", "--output"]
    for name, more in (("own.npy", []), ("shared.npy", ["--share-weights"])):
        assert cli.main(["embed", str(tmp_path / "in.txt"), *usual, str(tmp_path / name), *more]) == 0
        assert bool(packed_files(cache)) == bool(more)
    assert (tmp_path / "own.npy").read_bytes() == (tmp_path / "shared.npy").read_bytes()
    capsys.readouterr()
    cli.main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]["shared weights"]
    assert found == f"{kept_bytes() / 1e6:,.0f} MB in {cache / 'packed-weights'}"


def test_the_folder_names_weights_graph_and_layout(
    artifact_path: Path, artifact_copy: Path, cache: Path, layout: ModuleType
) -> None:
    artifact = Artifact.open(artifact_path)
    folder = prepare(artifact, graph_of(artifact))
    assert folder is not None
    assert folder.parent == cache / "packed-weights"
    assert folder.name.endswith("-7")
    moved = Artifact.open(artifact_copy)
    assert prepare(moved, graph_of(moved)) == folder
    for name in (WEIGHTS, PACKED_CPU_GRAPH):
        other = with_another(artifact, name)
        assert prepare(other, graph_of(other)) not in (None, folder)


def with_another(artifact: Artifact, name: str) -> Artifact:
    """Return the artifact with a different hash for one of its files."""
    files = dict(artifact.manifest.files)
    files[name] = replace(files[name], sha256="0" * 64)
    return Artifact(artifact.path, replace(artifact.manifest, files=files))


def aged(path: Path, seconds: float) -> Path:
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_unused_folders_are_removed(artifact_path: Path, cache: Path, layout: ModuleType) -> None:
    artifact = Artifact.open(artifact_path)
    layout.version = 6
    older = prepare(artifact, graph_of(artifact))
    other = with_another(artifact, WEIGHTS)
    used, unused = prepare(other, graph_of(other)), cache / "packed-weights" / f"{'0' * 32}-7"
    assert older is not None
    assert used is not None
    foreign = older.parent / "notes"
    for folder in (unused, foreign):
        folder.mkdir()
    (older / "node.packed").write_bytes(b"x")
    aged(used, 29 * A_DAY)
    aged(unused, 31 * A_DAY)
    aged(foreign, 99 * A_DAY)
    layout.version = 7
    folder = prepare(artifact, graph_of(artifact))
    assert folder is not None
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([folder.name, used.name, "notes"])


def test_a_folder_that_is_opened_stays(artifact_path: Path, cache: Path, layout: ModuleType) -> None:
    artifact = Artifact.open(artifact_path)
    folder = prepare(artifact, graph_of(artifact))
    assert folder is not None
    aged(folder, 40 * A_DAY)
    assert prepare(artifact, graph_of(artifact)) == folder
    assert time.time() - folder.stat().st_mtime < A_DAY


def test_leftovers_of_a_killed_process_are_removed(
    artifact_path: Path, cache: Path, layout: ModuleType
) -> None:
    artifact = Artifact.open(artifact_path)
    folder = prepare(artifact, graph_of(artifact))
    assert folder is not None
    for name in ("a.packed", "a.packed.Xy12Zz", "b.packed.Xy12Zz"):
        (folder / name).write_bytes(b"x")
    aged(folder / "a.packed", 9 * A_DAY)
    aged(folder / "a.packed.Xy12Zz", 2 * 3600)
    prepare(artifact, graph_of(artifact))
    assert sorted(path.name for path in folder.iterdir()) == ["a.packed", "b.packed.Xy12Zz"]


@pytest.mark.parametrize("home", ["none", "not UTF-8"])
def test_no_folder_can_be_named(
    artifact_path: Path, monkeypatch: pytest.MonkeyPatch, layout: ModuleType, home: str
) -> None:
    artifact = Artifact.open(artifact_path)
    if home == "none":
        monkeypatch.setattr("koe5_onnx.engine.shared_weights.cache_folder", no_home)
    else:
        monkeypatch.setenv("KOE5_ONNX_CACHE", "/nowhere/\udcff")
    with pytest.warns(SharedWeightsWarning, match="set KOE5_ONNX_CACHE to use another folder"):
        assert prepare(artifact, graph_of(artifact)) is None


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_nothing_kept_yet(cache: Path) -> None:
    assert kept_bytes() == 0
