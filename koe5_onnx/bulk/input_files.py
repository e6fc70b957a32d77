"""Input files: find them, determine their kind, and detect changes.

This module does not read their content. The rows of the output have the order of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote

from koe5_onnx import InputError
from koe5_onnx.bulk.lines import COMPRESSIONS
from koe5_onnx.stores import Entry, Location

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
class InputFiles:
    """Input files of one kind, in order."""

    root: Location
    is_folder: bool
    """True if `root` is the folder of the files, False if it is the only file."""
    kind: Kind
    entries: Mapping[str, Entry]
    """The files by name, which is the path relative to the folder."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the files."""
        return tuple(self.entries)

    def location(self, name: str) -> Location:
        """Return the location of a file."""
        return self.root / name if self.is_folder else self.root

    def unchanged(self, name: str) -> Location:
        """Return the location of a file after checking that it has not changed.

        Raises:
            InputError: The file has changed or was deleted since the job started.
        """
        self._require_same(name, self.location(name).entry())
        return self.location(name)

    def require_unchanged(self) -> None:
        """Check that no file has changed.

        Raises:
            InputError: A file has changed or was deleted since the job started.
        """
        now = _entries(self.root, self.is_folder)
        for name in self.names:
            self._require_same(name, now.get(name))

    def _require_same(self, name: str, now: Entry | None) -> None:
        if now != self.entries[name]:
            raise InputError(
                f"{self.location(name)} has changed since the job started. Start the job again with --restart"
            )


def find(root: Location) -> InputFiles:
    """Find the input files at `root`, a file or a folder with subfolders. They are sorted by name.

    Files and folders whose names start with "." or "_" are ignored, as Spark and Arrow do.

    Raises:
        InputError: The input does not exist, has no file of a known kind, or has files of several kinds.
    """
    is_folder = root.is_folder()
    entries = _entries(root, is_folder)
    if not is_folder and not entries:
        raise InputError(f"the input {root} does not exist. Check the path")
    found = {name: kind for name in entries if (kind := _kind_of(name)) is not None}
    if not is_folder and not found:
        raise InputError(f"the input {root} has an unknown suffix: expected {_SUFFIXES}. Convert it first")
    # Next to files of other kinds, .json files are usually metadata.
    data = {name: kind for name, kind in found.items() if not name.lower().endswith(".json")}
    found = data or found
    kinds = sorted(set(found.values()))
    if len(kinds) != 1:
        held = f"files of {len(kinds)} kinds ({', '.join(kinds)})" if kinds else "no input files"
        raise InputError(f"the input {root} has {held}: expected files of one kind of {_SUFFIXES}")
    return InputFiles(root, is_folder, kinds[0], {name: entries[name] for name in found})


def _entries(root: Location, is_folder: bool) -> dict[str, Entry]:
    if not is_folder:
        entry = root.entry()
        return {} if entry is None else {root.name: entry}
    return {
        name: entry
        for name, entry in root.find().items()
        if not any(part.startswith((".", "_")) for part in name.split("/"))
    }


def _kind_of(name: str) -> Kind | None:
    path = PurePosixPath(name.lower())
    if path.suffix in COMPRESSIONS:
        return _TEXTS.get(PurePosixPath(path.stem).suffix)
    return _TABLES.get(path.suffix) or _TEXTS.get(path.suffix)


def partitions(name: str) -> dict[str, str | None]:
    """Return the columns and values in the folders of a file: `lang=ko/a.parquet`, as from Hive and Spark."""
    pairs = [folder.split("=", 1) for folder in name.split("/")[:-1] if "=" in folder]
    return {unquote(key): None if value == _HIVE_NULL else unquote(value) for key, value in pairs}
