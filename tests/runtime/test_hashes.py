"""A cached SHA-256 is used only if the file has not changed since."""

import hashlib
import os
import time

import pytest

from koe5_onnx import Artifact, ArtifactError
from koe5_onnx.artifact import hashes
from koe5_onnx.artifact.hashes import sha256_of
from koe5_onnx.files import cache_folder

OLD = time.time() - 3600


@pytest.fixture
def file(tmp_path, cache, monkeypatch):
    """Return a file of 2 MiB. Its ctime cannot be set back, so lower the age at which hashes are cached."""
    monkeypatch.setattr(hashes, "_SETTLED_NS", -1)
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(2 << 20))
    return path


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def forbid_reading(monkeypatch):
    def refuse(*_args):
        raise AssertionError("the file was read again")

    monkeypatch.setattr(hashes.hashlib, "file_digest", refuse)


def test_the_second_time_nothing_is_read(file, monkeypatch):
    expected = digest_of(file)
    assert sha256_of(file) == expected
    forbid_reading(monkeypatch)
    assert sha256_of(file) == expected
    (file.parent / "link").symlink_to(file)
    assert sha256_of(file.parent / "link") == expected
    with pytest.raises(AssertionError, match="read again"):
        sha256_of(file, remember=False)


@pytest.mark.parametrize("change", ["byte", "times", "replaced"])
def test_a_changed_file_is_read_again(file, change):
    before = sha256_of(file)
    state = file.stat()
    if change == "byte":
        with file.open("r+b") as stream:
            stream.write(b"changed")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # ctime cannot be set back
    elif change == "times":
        os.utime(file, (OLD, OLD))
    else:
        file.with_name("other").write_bytes(b"\0" * state.st_size)
        file.with_name("other").rename(file)
    assert sha256_of(file) == digest_of(file)
    assert (sha256_of(file) == before) == (change == "times")


def test_a_file_just_changed_is_not_remembered(file, cache, monkeypatch):
    monkeypatch.setattr(hashes, "_SETTLED_NS", 10**18)
    assert sha256_of(file) == digest_of(file)
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"\xff", b'{"sha256": 5}'])
def test_a_damaged_note_is_ignored(file, cache, damage):
    sha256_of(file)
    (note,) = (cache / "sha256").iterdir()
    note.write_bytes(damage)
    assert sha256_of(file) == digest_of(file)


def test_without_a_cache_folder(file, monkeypatch):
    monkeypatch.setenv("KOE5_ONNX_CACHE", str(file))  # a file, in which no folder can be created
    assert sha256_of(file) == digest_of(file)


def test_small_files_leave_no_note(tmp_path, cache):
    (tmp_path / "small").write_bytes(b"x")
    sha256_of(tmp_path / "small")
    assert not cache.exists()


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("KOE5_ONNX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "koe5-onnx"


def test_a_damaged_artifact_is_found_despite_the_cache(artifact_copy, file, monkeypatch):
    monkeypatch.setattr(hashes, "_WORTH_REMEMBERING", 0)
    Artifact.open(artifact_copy)
    weights = artifact_copy / "onnx/model_quantized.onnx_data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="SHA-256"):
        Artifact.open(artifact_copy)
