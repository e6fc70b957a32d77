"""Packed weights in files: results are identical to those without files, and processes share the memory."""

from __future__ import annotations

import multiprocessing
import os
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from kernel_nodes import fed, open_session
from mapped_files import maps_of, memory_of
from packed_sessions import (
    GELU,
    WEIGHTS,
    Array,
    Sharing,
    Started,
    add_norm_inputs,
    gelu_inputs,
    model_of,
    qkv_inputs,
    wide_inputs,
    with_a_full_disk,
)

INPUTS: Mapping[str, dict[str, Array]] = {
    "ProjectQkv": qkv_inputs(),
    "ProjectAddNorm": add_norm_inputs(),
    "ProjectGelu": GELU,
}
FOOTER = struct.Struct("<8sIIqqQQQ")


@pytest.fixture
def sharing(library: Path) -> Sharing:
    made = Sharing(library)
    made.problem()  # clear a problem of an earlier test
    return made


def assert_same(found: list[Array], expected: list[Array]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("op", list(INPUTS))
def test_results_are_identical_with_and_without_a_file(sharing: Sharing, tmp_path: Path, op: str) -> None:
    expected = sharing.run(None, INPUTS[op], op)
    assert_same(sharing.run(tmp_path, INPUTS[op], op), expected)
    written = (tmp_path / "node.packed").stat()
    assert_same(sharing.run(tmp_path, INPUTS[op], op), expected)
    assert (tmp_path / "node.packed").stat().st_ino == written.st_ino
    assert written.st_mode & 0o777 == 0o600
    assert files_in(tmp_path) == ["node.packed"]
    assert sharing.problem() == ""


def cut(data: bytes) -> bytes:
    return data[:-1]


def lengthened(data: bytes) -> bytes:
    return data + b"\0"


def emptied(_data: bytes) -> bytes:
    return b""


def byte_changed(data: bytes) -> bytes:
    return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]


def zeroed(data: bytes) -> bytes:
    """Return the file as it may be after a crash of the machine: only its size and footer are on disk."""
    return bytes(len(data) - FOOTER.size) + data[-FOOTER.size :]


def footer_changed(field: int, value: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        fields = [*FOOTER.unpack(data[-FOOTER.size :])]
        fields[field] = value
        return data[: -FOOTER.size] + FOOTER.pack(*fields)

    return change


DAMAGES = {
    "cut": cut,
    "longer": lengthened,
    "empty": emptied,
    "a byte": byte_changed,
    "zeros": zeroed,
    "foreign": footer_changed(0, b"KOE5XXXX"),
    "another layout": footer_changed(1, 99),
    "another depth": footer_changed(3, 52),
    "another width": footer_changed(4, 96),
    "another source": footer_changed(6, 1),
    "another hash": footer_changed(7, 1),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_file_is_replaced(sharing: Sharing, tmp_path: Path, damage: str) -> None:
    expected = sharing.run(tmp_path)
    file = tmp_path / "node.packed"
    good = file.read_bytes()
    # Write a new file, because the session above may still map the first one.
    file.unlink()
    file.write_bytes(DAMAGES[damage](good))
    assert_same(sharing.run(tmp_path), expected)
    assert file.read_bytes() == good
    assert files_in(tmp_path) == ["node.packed"]
    assert sharing.problem() == ""


def test_a_mapping_remains_valid_after_its_file_is_replaced(sharing: Sharing, tmp_path: Path) -> None:
    expected = sharing.run(None)
    session = sharing.open(tmp_path)
    (tmp_path / "node.packed").unlink()
    sharing.run(tmp_path, gelu_inputs(seed=1))
    assert_same(list(session.run(None, fed(GELU, WEIGHTS["ProjectGelu"]))), expected)


@pytest.mark.parametrize("changed", ["weight", "weight_scale"])
def test_other_weights_under_the_same_name(sharing: Sharing, tmp_path: Path, changed: str) -> None:
    """Two graphs that share a folder replace each other's files, and their results are correct."""
    other = dict(GELU) | {changed: GELU[changed].copy()}
    other[changed].flat[-1] += 1
    sharing.run(tmp_path)
    assert_same(sharing.run(tmp_path, other), sharing.run(None, other))
    assert_same(sharing.run(tmp_path), sharing.run(None))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("/layer.0/gelu", "%2flayer.0%2fgelu.packed"),
        ("..", "...packed"),
        ("층 1", "%ec%b8%b5%201.packed"),
        ("%2f", "%252f.packed"),
        ("", None),
        ("a" * 241, None),
    ],
)
def test_file_names_of_nodes(sharing: Sharing, tmp_path: Path, name: str, file: str | None) -> None:
    model = renamed(model_of("ProjectGelu", GELU), name)
    open_session(sharing.library, model, threads=1, packed_weights=tmp_path)
    assert files_in(tmp_path) == ([] if file is None else [file])


def renamed(model: bytes, name: str) -> bytes:
    loaded = onnx.load_from_string(model)
    loaded.graph.node[0].name = name
    return bytes(loaded.SerializeToString())


@pytest.mark.parametrize("kind", ["missing folder", "a file", "a folder of that name"])
def test_folders_that_cannot_be_written(sharing: Sharing, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    if kind == "a file":
        folder.write_bytes(b"")
    elif kind == "a folder of that name":
        (folder / "node.packed").mkdir(parents=True)
    assert_same(sharing.run(folder), sharing.run(None))
    assert f"cannot store packed weights in {folder}/node.packed: " in sharing.problem()
    assert sharing.problem() == ""
    if kind == "a folder of that name":
        assert files_in(folder) == ["node.packed"]


def test_a_full_disk(sharing: Sharing, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        found, problem = process.submit(with_a_full_disk, sharing.library, tmp_path).result()
    assert_same(found, sharing.run(None))
    assert "File too large" in problem
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_start_at_once_share_one_file(sharing: Sharing, tmp_path: Path, damaged: bool) -> None:
    if damaged:
        (tmp_path / "node.packed").write_bytes(b"not it")
    barrier = multiprocessing.get_context("spawn").Barrier(4)
    started = [Started(sharing.library, tmp_path, barrier) for _ in range(4)]
    try:
        expected = sharing.run(None, wide_inputs())
        for one in started:
            assert_same(one.result(), expected)
        assert files_in(tmp_path) == ["node.packed"]
        mapped = [maps_of(one.pid, "node.packed") for one in started]
        assert all(len(inodes) == 1 for inodes in mapped)
        # If the file is missing, all processes map the first one that is written. If it is damaged, several
        # processes may replace it, each by its own file.
        assert damaged or len(set.union(*mapped)) == 1
    finally:
        for one in started:
            one.end()


def test_memory_is_shared_between_processes(sharing: Sharing, tmp_path: Path) -> None:
    barrier = multiprocessing.get_context("spawn").Barrier(2)
    started = [Started(sharing.library, tmp_path, barrier) for _ in range(2)]
    try:
        for one in started:
            one.result()
        for one in started:
            memory = memory_of(one.pid, "node.packed")
            assert memory.private_bytes == 0
            assert memory.shared_bytes >= 1024 * 4096
    finally:
        for one in started:
            one.end()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_descriptors_and_mappings_are_released(sharing: Sharing, tmp_path: Path) -> None:
    sharing.run(tmp_path)
    before = descriptors()
    for seed in (1, 0, 1):
        sharing.run(tmp_path, gelu_inputs(seed=seed))
    assert descriptors() == before
    assert maps_of(os.getpid(), "node.packed") == set()


def test_sessions_with_and_without_a_folder(sharing: Sharing, tmp_path: Path) -> None:
    folders = [tmp_path / "a", None, tmp_path / "b"]
    for folder in folders:
        if folder is not None:
            folder.mkdir()
    sessions = [sharing.open(folder) for folder in folders]
    results = [session.run(None, fed(GELU, WEIGHTS["ProjectGelu"])) for session in sessions]
    for found in results[1:]:
        assert_same(found, results[0])
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b") == ["node.packed"]
    assert np.isfinite(results[0][1]).all()
