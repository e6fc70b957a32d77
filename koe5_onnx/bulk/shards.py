"""The output folder: names, receipts of finished shards, what is whole.

A folder of a job::

    part-00000000.parquet ...   the shards; the order of their names is the order of the input's rows
    _job.json, _plan.json       what was asked, and how the input is divided
    _progress/00000000.json ... a receipt a finished shard: rows, tokens, bad rows
    _errors.jsonl               all bad rows, in the order of the input, once the job is done
    _SUCCESS                    last of all, as JSON: counts, and the rows of each shard
    _lock                       held by the process that works here

Arrow and Spark pass over names that begin with "_", so the folder can be read as one table. A file gets its
name when it is complete and on disk. A shard counts as finished where its receipt is there and its file has
the receipt's size: one of the two alone is made again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from koe5_onnx import InputError
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
    """What became of a shard."""

    shard: int
    rows: int
    """Rows with an embedding."""
    bad: tuple[BadRow, ...]
    tokens: int
    """That ran, after truncation."""
    truncated: int
    """Rows whose text was cut at the token limit."""
    composed: int
    """Rows whose text was decomposed Unicode, and was composed."""
    bytes: int
    """Size of its file."""


class OutputFolder:
    """Names and files of one job's output."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def part(self, shard: int) -> Path:
        """A shard's file."""
        return self.path / f"part-{shard:08d}.parquet"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, which is made if need be; the lock goes with the process, however that ends.

        Raises:
            InputError: Another process holds it.
        """
        (self.path / PROGRESS).mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise InputError(
                f"another process works on {self.path}: wait for it, or give another output"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def require_usable(self) -> None:
        """Refuse a folder with other things in it.

        Raises:
            InputError: It is a file, or holds files and no job.
        """
        if self.path.is_file():
            raise InputError(f"the output {self.path} is a file: expected a folder")
        known = (JOB, PLAN, PROGRESS, LOCK)
        others = (
            [path.name for path in self.path.glob("*") if path.name not in known]
            if self.path.is_dir()
            else []
        )
        if others and not (self.path / JOB).is_file() and not all(name.endswith(PARTIAL) for name in others):
            raise InputError(
                f"the output {self.path} holds {sorted(others)[0]!r} and no job of this command: "
                "give an empty or a new folder"
            )

    def clear(self) -> None:
        """Remove all that a job wrote; the job file last, as without it nothing here counts."""
        for path in [*self.path.glob("part-*.parquet"), *(self.path / PROGRESS).glob("*.json")]:
            path.unlink()
        self.remove_partial()
        for name in (SUCCESS, ERRORS, PLAN, JOB):
            (self.path / name).unlink(missing_ok=True)

    def remove_partial(self) -> None:
        """Remove what a killed process left unfinished."""
        for path in [*self.path.glob(f".*{PARTIAL}"), *(self.path / PROGRESS).glob(f".*{PARTIAL}")]:
            path.unlink(missing_ok=True)

    def read_json(self, name: str) -> Any:
        """A JSON file of the folder.

        Raises:
            InputError: It is damaged.
        """
        return read_json(self.path / name, InputError, "start the job again with --restart")

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file of the folder."""
        write_json(self.path / name, data)

    def sign(self, receipt: Receipt) -> None:
        """Note that a shard is finished, after its file has its name."""
        self.write_json(f"{PROGRESS}/{receipt.shard:08d}.json", dataclasses.asdict(receipt))

    def receipts(self, shards: int) -> dict[int, Receipt]:
        """The finished ones of the first `shards`, by shard."""
        found = {}
        for shard in range(shards):
            receipt = self._receipt(shard)
            if receipt is not None:
                found[shard] = receipt
        return found

    def write_errors(self, receipts: Iterable[Receipt]) -> None:
        """Write the bad rows of all shards into one file, an object a line."""
        with atomic_path(self.path / ERRORS) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for receipt in receipts:
                for row in receipt.bad:
                    stream.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")

    def _receipt(self, shard: int) -> Receipt | None:
        name = f"{PROGRESS}/{shard:08d}.json"
        part = self.part(shard)
        if not (self.path / name).is_file() or not part.is_file():
            return None
        data = self.read_json(name)
        bad = tuple(BadRow(**row) for row in data.pop("bad"))
        receipt = Receipt(bad=bad, **data)
        return receipt if part.stat().st_size == receipt.bytes else None
