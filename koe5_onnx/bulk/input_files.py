"""The input: which files there are, of which kind, and whether they are still what they were.

Does not read what is in them. The order of the files is the order of the rows of the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from koe5_onnx import InputError

Kind = Literal["parquet", "jsonl", "csv"]

_KINDS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".csv": "csv",
    ".csv.gz": "csv",
}


@dataclass(frozen=True)
class InputFile:
    """One file as it was found; while these stay the same it is taken for unchanged."""

    name: str
    """Path below the source's folder, with "/" between its parts."""
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class InputFiles:
    """Input files of one kind, in order."""

    folder: Path
    kind: Kind
    files: tuple[InputFile, ...]

    def path(self, index: int) -> Path:
        """Where a file lies, if it is still what it was.

        Raises:
            InputError: It has changed since the job began.
            OSError: It is gone.
        """
        expected = self.files[index]
        path = self.folder / expected.name
        if _describe(path, self.folder) != expected:
            raise InputError(f"{path} has changed while the job ran: start it again with --restart")
        return path

    def require_unchanged(self) -> None:
        """Check all files.

        Raises:
            InputError: One has changed.
            OSError: One is gone.
        """
        for index in range(len(self.files)):
            self.path(index)


def find(path: Path) -> InputFiles:
    """The input at `path`: a file, or a folder and its subfolders, in the order of the names.

    Names that begin with "." or "_" are passed over, as Spark and Arrow do: they are other programs' notes.

    Raises:
        InputError: It is not there, holds no file of a known kind, or files of more than one kind.
    """
    if not path.exists():
        raise InputError(f"the input {path} does not exist")
    path = path.resolve()
    if path.is_file():
        kind = _kind_of(path)
        if kind is None:
            raise InputError(f"the input {path} is none of {', '.join(_KINDS)}: convert it first")
        return InputFiles(path.parent, kind, (_describe(path, path.parent),))
    found = {file: kind for file in _walk(path) if (kind := _kind_of(file)) is not None}
    kinds = sorted(set(found.values()))
    if len(kinds) != 1:
        held = f"files of {len(kinds)} kinds ({', '.join(kinds)})" if kinds else "no file"
        raise InputError(f"the input {path} holds {held}: expected files of one kind of {', '.join(_KINDS)}")
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
    name = path.name.lower()
    return next((kind for suffix, kind in _KINDS.items() if name.endswith(suffix)), None)


def _describe(path: Path, folder: Path) -> InputFile:
    found = path.stat()
    return InputFile(path.relative_to(folder).as_posix(), found.st_size, found.st_mtime_ns)
