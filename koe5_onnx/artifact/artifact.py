"""Open an artifact from disk or from the Hub and check its files.

An artifact is a folder, with the names that ONNX models on the Hub have::

    manifest.json           source, contract, file hashes and certificate
    onnx/model*.onnx        padded graph: input_ids, attention_mask int64[n, padded_length] -> float32[n, dim]
    onnx/model*.onnx_data   weights, memory-mapped by ONNX Runtime
    onnx/packed_cpu.onnx    optional packed graph for CPUs; requires fused kernels, shares the weights
    onnx/packed_cuda.onnx   optional packed graph for CUDA; shares the weights
    tokenizer.json          tokenizer of the Rust library tokenizers
    config.json, ...        settings for other runtimes; koe5-onnx does not read them

The name of the padded graph depends on the precision (`GRAPHS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from koe5_onnx.artifact.hashes import sha256_of
from koe5_onnx.artifact.hub import fetch, is_hub_id
from koe5_onnx.artifact.manifest import MANIFEST, TOKENIZER, File, Manifest
from koe5_onnx.artifact.parsing import AGAIN
from koe5_onnx.errors import ArtifactError, HubError


@dataclass(frozen=True)
class Artifact:
    """An artifact folder and its parsed manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path_or_hub_id: str | Path, *, revision: str | None = None, check: bool = True) -> Artifact:
        """Open an artifact folder, or download one from the Hub.

        Args:
            path_or_hub_id: Folder, or Hub id "owner/name" if no such folder exists.
            revision: Branch, tag or commit on the Hub; None selects the default branch.
            check: Verify the SHA-256 of every file in the manifest. Hashing takes about one second per
                gigabyte; hashes are cached until a file changes. Sizes are always verified.

        Raises:
            ArtifactError: The folder or a file is missing, a file is damaged or in an unsupported format, or
                the download failed.
        """
        if (path := _local_folder(path_or_hub_id)) is not None:
            artifact = cls(path, _read_manifest(path))
        else:
            artifact = _download(str(path_or_hub_id), revision)
        artifact.check_files(hashes=check)
        return artifact

    @property
    def graph(self) -> Path:
        """Path of the padded graph."""
        return self.path / self.manifest.graph

    @property
    def tokenizer(self) -> Path:
        """Path of tokenizer.json."""
        return self.path / TOKENIZER

    def check_files(self, *, hashes: bool, remember: bool = True) -> None:
        """Compare the files with the manifest.

        Args:
            hashes: Also compare SHA-256 hashes.
            remember: Use cached hashes for files that have not changed since an earlier check.

        Raises:
            ArtifactError: A file is missing, or its size or (with `hashes`) its SHA-256 differs.
        """
        for name in (self.manifest.graph, self.manifest.weights, TOKENIZER):
            if name not in self.manifest.files:
                raise ArtifactError(f"{self.path / MANIFEST} does not list {name}. Export the artifact again")
        for name, expected in self.manifest.files.items():
            _check_file(self.path / name, expected, hashes, remember)


def describe_file(path: Path) -> File:
    """Return the size and SHA-256 of a file without using the hash cache."""
    return File(bytes=path.stat().st_size, sha256=sha256_of(path, remember=False))


def _check_file(path: Path, expected: File, hashes: bool, remember: bool) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing. {AGAIN}")
    size = path.stat().st_size
    if size != expected.bytes:
        raise ArtifactError(f"{path} has {size} bytes: expected {expected.bytes}. {AGAIN}")
    if hashes and sha256_of(path, remember=remember) != expected.sha256:
        raise ArtifactError(f"the SHA-256 of {path} differs from the manifest. {AGAIN}")


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    if not file.is_file():
        raise ArtifactError(f"{folder} has no {MANIFEST}. Pass a folder created by koe5-onnx export")
    try:
        return Manifest.from_json(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{file} is not UTF-8 text ({error}). {AGAIN}") from error


def _local_folder(path_or_hub_id: str | Path) -> Path | None:
    """Return the folder, or None if the argument is a Hub id."""
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    if path.exists():
        raise ArtifactError(f"{path} is a file: expected an artifact folder")
    if isinstance(path_or_hub_id, Path) or not is_hub_id(path_or_hub_id):
        raise ArtifactError(f"{path} does not exist: expected an artifact folder or a Hub id (owner/name)")
    return None


def _download(hub_id: str, revision: str | None) -> Artifact:
    """Download the manifest and the files that it lists, or find them in the local cache."""
    try:
        folder = fetch(hub_id, revision, [MANIFEST])
        manifest = _read_manifest(folder)
        # The folder is named after the commit, so that all files are of the same revision.
        fetch(hub_id, folder.name, list(manifest.files))
    except HubError as error:
        raise ArtifactError(f"{hub_id} is not a local folder, and koe5-onnx {error}") from error
    return Artifact(folder, manifest)
