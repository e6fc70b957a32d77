"""The output folder of a job: file names and receipts of finished shards.

Files of the folder::

    part-00000000.parquet ...   the shards, named in the order of the input rows; formats.py has other formats
    _job.json, _plan.json       the description of the job and its plan
    _progress/00000000.json ... one receipt per finished shard: rows, tokens, bad rows
    _errors.jsonl               all bad rows, in the order of the input; written when the job ends
    _SUCCESS                    JSON with counts and the rows of each shard; written last
    _lock                       locked by the process that writes to the folder

Arrow and Spark ignore names that start with "_", so they read the folder as one table. Each file is written
under a temporary name and renamed when it is complete and on disk. A shard is finished if its receipt exists
and its files have the size in the receipt; otherwise it is embedded again.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from koe5_onnx import InputError
from koe5_onnx.bulk.formats import COLUMNS, FORMATS, LANCE
from koe5_onnx.bulk.rows import BadRow
from koe5_onnx.files import PARTIAL, atomic_path, read_json, write_json

JOB, PLAN, PROGRESS, ERRORS, SUCCESS, LOCK = (
    "_job.json",
    "_plan.json",
    "_progress",
    "_errors.jsonl",
    "_SUCCESS",
    "_lock",
)


@dataclass(frozen=True)
class Receipt:
    """Counts of a finished shard."""

    shard: int
    """Index of the shard."""
    rows: int
    """Number of rows with an embedding."""
    bad: tuple[BadRow, ...]
    tokens: int
    """Number of embedded tokens, after truncation."""
    truncated: int
    """Number of rows whose text was truncated."""
    composed: int
    """Number of rows whose text was in decomposed Unicode and was normalized to NFC."""
    repeated: int
    """Number of rows with the text of a recent row, which were not embedded again."""
    bytes: int
    """Size of the shard's files."""


class OutputFolder:
    """Output folder of one job with files of one format."""

    def __init__(self, path: Path, output_format: str) -> None:
        self.path, self._names = path, FORMATS[output_format].names

    def parts(self, shard: int) -> list[Path]:
        """Return the paths of a shard's files."""
        return [self.path / name.format(shard) for name in self._names]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder if necessary and lock it. The lock also ends if the process is killed.

        Raises:
            InputError: Another process has locked the folder.
        """
        for folder in (self.path / PROGRESS, *(part.parent for part in self.parts(0))):
            folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise InputError(
                f"another process writes to {self.path}. Wait for it, or pass another output"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def require_usable(self) -> None:
        """Check that the path does not exist, or is an empty folder or the folder of a job.

        Raises:
            InputError: The path is a file, or a folder with files but no job.
        """
        if self.path.is_file():
            raise InputError(f"the output {self.path} is a file. Pass a folder")
        known = (JOB, PLAN, PROGRESS, LOCK, COLUMNS, LANCE)
        others = (
            [path.name for path in self.path.glob("*") if path.name not in known]
            if self.path.is_dir()
            else []
        )
        if others and not (self.path / JOB).is_file() and not all(name.endswith(PARTIAL) for name in others):
            raise InputError(
                f"the output {self.path} has the file {sorted(others)[0]!r} but no job. "
                "Pass an empty or a new folder"
            )

    def clear(self) -> None:
        """Delete the files of a job: the job file last, because it marks the folder as that of a job."""
        parts = [name.replace("{:08d}", "*") for each in FORMATS.values() for name in each.names]
        for path in (path for name in (*parts, f"{PROGRESS}/*.json") for path in self.path.glob(name)):
            path.unlink()
        shutil.rmtree(self.path / LANCE, ignore_errors=True)
        self.remove_partial()
        for name in (SUCCESS, ERRORS, PLAN, JOB):
            (self.path / name).unlink(missing_ok=True)

    def remove_partial(self) -> None:
        """Delete the temporary files of a killed process."""
        # Lance itself writes to files whose names start with ".tmp".
        for path in [*self.path.rglob(f".*{PARTIAL}"), *self.path.glob(f"{LANCE}/data/.tmp*")]:
            path.unlink(missing_ok=True)

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the folder.

        Raises:
            InputError: The file is damaged.
        """
        return read_json(self.path / name, InputError, "start the job again with --restart")

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file of the folder."""
        write_json(self.path / name, data)

    def sign(self, receipt: Receipt) -> None:
        """Write the receipt of a shard whose file is complete."""
        self.write_json(f"{PROGRESS}/{receipt.shard:08d}.json", dataclasses.asdict(receipt))

    def receipts(self, shards: int) -> dict[int, Receipt]:
        """Return the receipts of the finished shards among the first `shards`, by index."""
        found = {}
        for shard in range(shards):
            receipt = self._receipt(shard)
            if receipt is not None:
                found[shard] = receipt
        return found

    def write_errors(self, receipts: Iterable[Receipt]) -> None:
        """Write the bad rows of all shards to one file, one JSON object per line."""
        with atomic_path(self.path / ERRORS) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for receipt in receipts:
                for row in receipt.bad:
                    stream.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")

    def _receipt(self, shard: int) -> Receipt | None:
        name = f"{PROGRESS}/{shard:08d}.json"
        parts = self.parts(shard)
        if not (self.path / name).is_file() or not all(part.is_file() for part in parts):
            return None
        data = self.read_json(name)
        bad = tuple(BadRow(**row) for row in data.pop("bad"))
        receipt = Receipt(bad=bad, **data)
        return receipt if size_of(parts) == receipt.bytes else None


def size_of(parts: Iterable[Path]) -> int:
    """Return the total size of files in bytes."""
    return sum(part.stat().st_size for part in parts)
