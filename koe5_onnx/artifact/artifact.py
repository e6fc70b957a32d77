"""An artifact: the exported folder, opened from disk or from the Hub, and its files checked.

An artifact is a folder::

    manifest.json      what this is, how to use it, how close to PyTorch it was measured to be
    model.onnx         the padded graph: input_ids, attention_mask int64[n, width] -> float32[n, dim]
    model.onnx.data    its weights, memory-mapped by ONNX Runtime
    model.fused.onnx   optional: packed graph for CPUs over the same weights, of fused kernels
    model.packed.onnx  optional: packed graph for CUDA over the same weights
    tokenizer.json     the Rust tokenizer
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from koe5_onnx.artifact.hashes import sha256_of
from koe5_onnx.artifact.hub import fetch, is_hub_id
from koe5_onnx.artifact.manifest import (
    AGAIN,
    GRAPH,
    MANIFEST,
    PACKED_GRAPHS,
    TOKENIZER,
    WEIGHTS,
    File,
    Manifest,
)
from koe5_onnx.errors import ArtifactError, HubError


@dataclass(frozen=True)
class Artifact:
    """An opened artifact: a folder whose manifest was read and whose files were checked."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path_or_hub_id: str | Path, *, revision: str | None = None, check: bool = True) -> Artifact:
        """Open an artifact folder, or fetch one from the Hub.

        Args:
            path_or_hub_id: Folder, or Hub id "owner/name" where no such folder exists.
            revision: Branch, tag or commit on the Hub.
            check: Compare every file with its SHA-256 (about a second a gigabyte, remembered while the file
                stays the same); sizes are always compared.

        Raises:
            ArtifactError: Something is missing, damaged or of another format; the message names the file.
        """
        path = _locate(path_or_hub_id, revision)
        file = path / MANIFEST
        if not file.is_file():
            raise ArtifactError(f"{path} has no {MANIFEST}: expected a folder made by koe5-onnx export")
        try:
            manifest = Manifest.from_json(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{file} is not UTF-8 text ({error}): {AGAIN}") from error
        artifact = cls(path, manifest)
        artifact.check_files(hashes=check)
        return artifact

    @property
    def graph(self) -> Path:
        """The ONNX graph."""
        return self.path / GRAPH

    @property
    def tokenizer(self) -> Path:
        """The tokenizer.json."""
        return self.path / TOKENIZER

    def check_files(self, *, hashes: bool, remember: bool = True) -> None:
        """Compare the files with the manifest.

        Args:
            hashes: Compare their SHA-256 too.
            remember: Take the SHA-256 of a file that is the same since an earlier check from that check.

        Raises:
            ArtifactError: A file is missing, or its size or (with `hashes`) its SHA-256 differs.
        """
        for name in (GRAPH, WEIGHTS, TOKENIZER):
            if name not in self.manifest.files:
                raise ArtifactError(f"{self.path / MANIFEST} lists no {name}: export the artifact again")
        for name, expected in self.manifest.files.items():
            _check_file(self.path / name, expected, hashes, remember)


def describe_file(path: Path) -> File:
    """Size and SHA-256 of a file, which is read through."""
    return File(bytes=path.stat().st_size, sha256=sha256_of(path, remember=False))


def _check_file(path: Path, expected: File, hashes: bool, remember: bool) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: {AGAIN}")
    size = path.stat().st_size
    if size != expected.bytes:
        raise ArtifactError(f"{path} has {size} bytes, its manifest says {expected.bytes}: {AGAIN}")
    if hashes and sha256_of(path, remember=remember) != expected.sha256:
        raise ArtifactError(f"{path} does not have the SHA-256 of its manifest: {AGAIN}")


def _locate(path_or_hub_id: str | Path, revision: str | None) -> Path:
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    if path.exists():
        raise ArtifactError(f"{path} is a file: expected an artifact's folder")
    name = str(path_or_hub_id)
    if isinstance(path_or_hub_id, Path) or not is_hub_id(name):
        raise ArtifactError(f"{name} does not exist: expected an artifact's folder or a Hub id (owner/name)")
    try:
        return fetch(name, revision, (MANIFEST, GRAPH, *PACKED_GRAPHS, WEIGHTS, TOKENIZER))
    except HubError as error:
        raise ArtifactError(f"there is no folder {name} here, and as a Hub id it fails: {error}") from error
