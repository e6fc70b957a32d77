from __future__ import annotations

import os

import pytest

from koe5_onnx import InputError
from koe5_onnx.files import atomic_path, read_json


def test_a_link_stays_a_link(tmp_path):
    kept, link = tmp_path / "kept", tmp_path / "link"
    kept.write_text("old")
    link.symlink_to("kept")
    with atomic_path(link) as temporary:
        temporary.write_text("new")
        assert kept.read_text() == "old"
    assert link.is_symlink()
    assert kept.read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "link"}


def test_a_full_disk_names_the_users_path(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "out"
    with pytest.raises(OSError, match="No space left") as caught, atomic_path(path) as temporary:
        temporary.write_text("new")
    assert caught.value.filename == str(path)
    assert not list(tmp_path.iterdir())


def interrupted_folder(path):
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
        raise KeyboardInterrupt


def test_an_interruption_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted_folder(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_gets_its_name_at_the_end(tmp_path):
    with atomic_path(tmp_path / "out") as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON .*: try this"),
        (b'"\xff"', "is not JSON .*: try this"),
        (b"[" * 100_000, "is not JSON .*: try this"),
        (b"[]", "contains a list instead of a dict: try this"),
    ],
)
def test_a_damaged_json_file_is_named(tmp_path, content, message):
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"file\.json {message}"):
        read_json(file, InputError, "try this")
