"""Input files: find them, determine their kind, and detect changes.

This module does not read their content. The rows of the output have the order of the files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from koe5_onnx import InputError
from koe5_onnx.bulk.lines import COMPRESSIONS

Kind = Literal["parquet", "arrow", "jsonl", "csv"]

_TABLES: dict[str, Kind] = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow"}
_TEXTS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}
_SUFFIXES = f"{', '.join(_TABLES)}, or {', '.join(_TEXTS)}, also with {' or '.join(COMPRESSIONS)}"
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class InputFile:
    """An input file. It counts as unchanged while its name, size and modification time are the same."""

    name: str
    """Path relative to the input folder, with "/" as separator."""
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class InputFiles:
    """Input files of one kind, in order."""

    folder: Path
    kind: Kind
    files: tuple[InputFile, ...]

    def path(self, index: int) -> Path:
        """Return the path of an unchanged file.

        Raises:
            InputError: The file has changed since the job started.
            OSError: The file does not exist anymore.
        """
        expected = self.files[index]
        path = self.folder / expected.name
        if _describe(path, self.folder) != expected:
            raise InputError(f"{path} has changed since the job started. Start the job again with --restart")
        return path

    def require_unchanged(self) -> None:
        """Check that no file has changed.

        Raises:
            InputError: A file has changed since the job started.
            OSError: A file does not exist anymore.
        """
        for index in range(len(self.files)):
            self.path(index)


def find(path: Path) -> InputFiles:
    """Find the input files at `path`, a file or a folder with subfolders. They are sorted by name.

    Files and folders whose names start with "." or "_" are ignored, as Spark and Arrow do.

    Raises:
        InputError: The path does not exist, has no file of a known kind, or has files of several kinds.
    """
    require_local(path)
    if not path.exists():
        raise InputError(f"the input {path} does not exist. Check the path")
    path = path.resolve()
    if path.is_file():
        kind = _kind_of(path)
        if kind is None:
            raise InputError(
                f"the input {path} has an unknown suffix: expected {_SUFFIXES}. Convert it first"
            )
        return InputFiles(path.parent, kind, (_describe(path, path.parent),))
    found = {file: kind for file in _walk(path) if (kind := _kind_of(file)) is not None}
    # Next to files of other kinds, .json files are usually metadata.
    data = {file: kind for file, kind in found.items() if file.suffix.lower() != ".json"}
    found = data or found
    kinds = sorted(set(found.values()))
    if len(kinds) != 1:
        held = f"files of {len(kinds)} kinds ({', '.join(kinds)})" if kinds else "no input files"
        raise InputError(f"the input {path} has {held}: expected files of one kind of {_SUFFIXES}")
    files = sorted((_describe(file, path) for file in found), key=lambda file: file.name)
    return InputFiles(path, kinds[0], tuple(files))


def _walk(folder: Path) -> list[Path]:
    files = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        if not hidden and path.is_file():
            files.append(path)
    return files


def _kind_of(path: Path) -> Kind | None:
    name = Path(path.name.lower())
    if name.suffix in COMPRESSIONS:
        return _TEXTS.get(Path(name.stem).suffix)
    return _TABLES.get(name.suffix) or _TEXTS.get(name.suffix)


def _describe(path: Path, folder: Path) -> InputFile:
    found = path.stat()
    return InputFile(path.relative_to(folder).as_posix(), found.st_size, found.st_mtime_ns)


def partitions(name: str) -> dict[str, str | None]:
    """Return the columns and values in the folders of a file: `lang=ko/a.parquet`, as from Hive and Spark."""
    pairs = [folder.split("=", 1) for folder in name.split("/")[:-1] if "=" in folder]
    return {unquote(key): None if value == _HIVE_NULL else unquote(value) for key, value in pairs}


def require_local(path: Path) -> None:
    """Check that a path is not a URL.

    Raises:
        InputError: The path is a URL.
    """
    # pathlib turns :// into :/.
    if (url := re.match(r"([a-z][a-z0-9+.-]+):/", str(path))) is not None:
        raise InputError(
            f"{path} is a {url[1]}:// URL: expected a local path. Mount the bucket, or copy the input before "
            "the job and the output after it"
        )
