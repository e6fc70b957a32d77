"""Cache folders for packed weights that several processes map.

The fused kernels reorder ("pack") the weights. Without sharing, each process packs a private copy. With
sharing, the kernels write the packed weights to files, which other processes verify and map
(kernels/src/packed_file.h). Each packed graph has a folder that only the current user can access, named
after a hash of the weights and the graph, and after the version of the packed layout. When the kernels open a
file, hashes of the packed weights and of a sample of the original weights show whether it is damaged or
outdated; such files are replaced.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import warnings
from contextlib import suppress
from pathlib import Path

from koe5_onnx.artifact import Artifact
from koe5_onnx.engine.graphs import Graph, sharing_problem, weight_layout
from koe5_onnx.errors import SharedWeightsWarning
from koe5_onnx.files import cache_folder

_UNUSED_S = 30 * 24 * 3600.0
"""Seconds without use after which a folder is removed. Running processes keep their mappings."""
_UNFINISHED_S = 3600.0
"""Seconds after which a temporary file is removed, since the process that wrote it must have been killed."""
_FOLDER = re.compile(r"([0-9a-f]{32})-(\d+)")


def weight_folders() -> Path:
    """Return the folder that contains one folder per packed graph. Users can delete it to free disk space.

    Raises:
        RuntimeError: See `cache_folder`.
    """
    return cache_folder() / "packed-weights"


def kept_bytes() -> int:
    """Return the total size of all packed weights in the cache, in bytes.

    Raises:
        RuntimeError: See `cache_folder`.
    """
    sizes = 0
    for file in weight_folders().glob("*/*"):
        with suppress(OSError):  # removed by another process
            sizes += file.stat().st_size
    return sizes


def prepare(artifact: Artifact, graph: Graph) -> Path | None:
    """Create the folder for a graph's packed weights, and remove outdated folders and files.

    Returns:
        The folder, or None (with a `SharedWeightsWarning`) if it cannot be created.
    """
    try:
        folder = _folder_of(artifact, graph)
        str(folder).encode()  # ONNX Runtime requires UTF-8
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError, UnicodeError) as error:
        _warn(str(error))
        return None
    with suppress(OSError):  # a read-only folder can still contain usable files
        os.utime(folder)
        _tidy(folder)
    return folder


def report() -> None:
    """Warn if the session that this thread just opened does not share its weights."""
    if problem := sharing_problem():
        _warn(problem)


def _folder_of(artifact: Artifact, graph: Graph) -> Path:
    files = artifact.manifest.files
    name = graph.file.relative_to(artifact.path).as_posix()
    what = f"{files[artifact.manifest.weights].sha256}\n{files[name].sha256}"
    return weight_folders() / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}-{weight_layout()}"


def _tidy(used: Path) -> None:
    """Remove unused folders, folders with another layout of the same weights, and abandoned files."""
    now = time.time()
    for folder in used.parent.iterdir():
        named = _FOLDER.fullmatch(folder.name)
        if named is None or folder == used:
            continue
        if used.name.startswith(f"{named[1]}-") or now - folder.stat().st_mtime > _UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)
    for file in used.iterdir():
        if file.suffix != ".packed" and now - file.stat().st_mtime > _UNFINISHED_S:
            file.unlink(missing_ok=True)


def _warn(reason: str) -> None:
    warnings.warn(
        f"this process cannot share packed weights and keeps a private copy: {reason}. Fix the cause (set "
        "KOE5_ONNX_CACHE to use another folder), or open the artifact without share_weights",
        SharedWeightsWarning,
        stacklevel=2,
    )
