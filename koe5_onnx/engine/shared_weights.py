"""Packed weights in the user's cache folder, mapped by every process that asks: their folder, and its end.

The fused kernels keep weights in an order of their own. Each process packs them for itself, or takes from
here what another one packed; the kernels write, check and map the files (kernels/src/packed_file.h). By its
name a folder belongs to one artifact's weights and graph and to one layout of the kernels. It is made for
this user alone. A file that is damaged or of other weights is found out when it is opened, by a hash of all
that it holds and one of its source, and replaced.
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

from koe5_onnx.artifact import WEIGHTS, Artifact
from koe5_onnx.engine.graphs import Graph, packed_layout, sharing_problem
from koe5_onnx.errors import SharedWeightsWarning
from koe5_onnx.files import cache_folder

_UNUSED_S = 30 * 24 * 3600.0
"""A folder that no session opened for so long is removed; running processes keep what they have mapped."""
_UNFINISHED_S = 3600.0
"""A file that is still without its name after this belongs to a process that was killed."""
_FOLDER = re.compile(r"([0-9a-f]{32})-(\d+)")


def packed_folders() -> Path:
    """The folder that holds one folder for each artifact: delete it to have the disk back.

    Raises:
        RuntimeError: No cache folder is named and the user has no home.
    """
    return cache_folder() / "packed-weights"


def kept_bytes() -> int:
    """Bytes of all files of packed weights.

    Raises:
        RuntimeError: As `packed_folders`.
    """
    sizes = 0
    for file in packed_folders().glob("*/*"):
        with suppress(OSError):  # another process removed it just now
            sizes += file.stat().st_size
    return sizes


def prepare(artifact: Artifact, graph: Graph) -> Path | None:
    """The folder for this graph's packed weights, made where it is missing; what is out of use is removed.

    None, with a `SharedWeightsWarning`, where there can be none.
    """
    try:
        folder = _folder_of(artifact, graph)
        str(folder).encode()  # ONNX Runtime takes it as UTF-8
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError, UnicodeError) as error:
        _warn(str(error))
        return None
    with suppress(OSError):  # read-only, and filled before: it serves as it is
        os.utime(folder)
        _tidy(folder)
    return folder


def report() -> None:
    """Warn where the session that this thread just opened keeps weights of its own after all."""
    if problem := sharing_problem():
        _warn(problem)


def _folder_of(artifact: Artifact, graph: Graph) -> Path:
    files = artifact.manifest.files
    what = f"{files[WEIGHTS].sha256}\n{files[graph.file.name].sha256}"
    return packed_folders() / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}-{packed_layout()}"


def _tidy(used: Path) -> None:
    """Remove other layouts of the same weights, folders out of use, and what killed processes left."""
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
        f"this process holds weights of its own instead of sharing them: {reason}; "
        "mend that (KOE5_ONNX_CACHE names another folder), or open without share_weights",
        SharedWeightsWarning,
        stacklevel=2,
    )
