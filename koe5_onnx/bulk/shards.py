"""The output folder of a job, local or remote: file names and receipts of finished shards.

Files of the folder::

    part-00000000.parquet ...   the shards, named in the order of the input rows; formats.py has other formats
    _job.json, _plan.json       the description of the job and its plan
    _progress/...               one receipt per finished shard: counts in its name, bad rows in its content
    _errors.jsonl               bad rows, in the order of the input; written when the job ends or has too many
    _SUCCESS                    JSON with counts and the rows of each shard; written last
    _lock                       locked by the process that writes to a local folder

Arrow and Spark ignore names that start with "_", so they read a folder of parquet files as one table. A file
appears when it is complete. A shard is finished if its receipt exists and its files have the size in the
receipt; otherwise it is embedded again. Receipts have their counts in their names, so that a resumed job
reads a listing instead of every receipt.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock

from koe5_onnx import InputError
from koe5_onnx.bulk.formats import FORMATS, LANCE
from koe5_onnx.bulk.rows import BadRow
from koe5_onnx.files import PARTIAL, json_bytes, parse_json
from koe5_onnx.stores import Location

JOB, PLAN, PROGRESS, ERRORS, SUCCESS, LOCK = (
    "_job.json",
    "_plan.json",
    "_progress",
    "_errors.jsonl",
    "_SUCCESS",
    "_lock",
)
_REQUESTS = 32
"""Number of small files that are read or deleted at the same time."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of rows and tokens. They can be added."""

    rows: int = 0
    """Number of rows with an embedding."""
    bad_rows: int = 0
    """Number of rows without an embedding, which are in _errors.jsonl."""
    tokens: int = 0
    """Number of tokens of the texts, at most the token limit per text."""
    truncated: int = 0
    """Number of rows with an embedding whose text was truncated."""
    composed: int = 0
    """Number of rows whose text was not in NFC and was normalized."""
    repeated: int = 0
    """Number of rows that `dedupe` did not embed, because their text was embedded recently."""

    def __add__(self, other: Counts) -> Counts:
        """Return the sums of the counts."""
        names = [field.name for field in dataclasses.fields(Counts)]
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class Receipt(Counts):
    """Counts of a finished shard."""

    shard: int
    """Index of the shard."""
    bytes: int
    """Size of the shard's files."""

    @property
    def name(self) -> str:
        """Name of the receipt's file in the output folder, such as "_progress/00000003,rows=1024,...json"."""
        counts = "".join(f",{name}={count}" for name, count in vars(self).items() if name != "shard")
        return f"{PROGRESS}/{self.shard:08d}{counts}.json"

    @classmethod
    def from_name(cls, name: str) -> Receipt:
        """Return the receipt with this file name."""
        shard, *counts = name.removeprefix(f"{PROGRESS}/").removesuffix(".json").split(",")
        pairs = (count.split("=") for count in counts)
        return cls(shard=int(shard), **{name: int(count) for name, count in pairs})


class OutputFolder:
    """Output folder of one job with files of one format."""

    def __init__(self, location: Location, output_format: str) -> None:
        self.location, self._names = location, FORMATS[output_format].names

    def names(self, shard: int) -> list[str]:
        """Return the names of a shard's files."""
        return [name.format(shard) for name in self._names]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Sizes in bytes of the files of earlier runs, listed when this is first used. Requires the lock."""
        return {name: entry.bytes for name, entry in self.location.find().items()}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create a local folder if necessary and lock it. The lock also ends if the process is killed.

        Remote stores have no locks. Several processes with the same job write the same files there.

        Raises:
            InputError: Another process has locked the folder.
        """
        if not self.location.is_local:
            yield
            return
        path = Path(self.location.path)
        for name in (f"{PROGRESS}/*", *self._names):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise InputError(
                f"another process writes to {path}. Wait for it, or pass another output"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def require_usable(self) -> None:
        """Check that the folder does not exist, is empty, or is the folder of a job.

        Raises:
            InputError: The output is a file, a folder with files but no job, or in an unsuitable store.
        """
        if self.location.is_http:
            raise InputError(f"the output {self.location} is read-only. Pass a local folder or a bucket")
        if not self.location.is_local and self._names == FORMATS["lance"].names:
            raise InputError(
                f"the output {self.location} is remote, but the output format lance requires a local folder. "
                "Copy the dataset after the job, or pass another --output-format"
            )
        if self.location.entry() is not None:
            raise InputError(f"the output {self.location} is a file. Pass a folder")
        if (self.location / JOB).entry() is not None:
            return
        # A process that was killed before its job started leaves the lock and temporary files.
        others = [name for name in self.location.find() if name != LOCK and not name.endswith(PARTIAL)]
        if others:
            raise InputError(
                f"the output {self.location} has the file {others[0]!r} but no job. "
                "Pass an empty or a new folder"
            )

    def clear(self) -> None:
        """Delete the files of a job: the job file last, because it marks the folder as that of a job."""
        patterns = [name.replace("{:08d}", "[0-9]" * 8) for each in FORMATS.values() for name in each.names]
        patterns += [f"{LANCE}/*", f"{PROGRESS}/*.json", SUCCESS, ERRORS, PLAN]
        self._remove(name for name in self.sizes if any(fnmatch(name, pattern) for pattern in patterns))
        self._remove(name for name in self.sizes if name == JOB)

    def remove_partial(self) -> None:
        """Delete the temporary files of a killed process."""
        # Lance itself writes to files whose names start with ".tmp".
        patterns = (f"*/.*{PARTIAL}", f"/{LANCE}/data/.tmp*")
        self._remove(name for name in self.sizes if any(fnmatch(f"/{name}", pattern) for pattern in patterns))

    def remove_success(self) -> None:
        """Delete _SUCCESS, before the output becomes incomplete."""
        self._remove(name for name in self.sizes if name == SUCCESS)

    def _remove(self, names: Iterable[str]) -> None:
        found = list(names)
        with ThreadPoolExecutor(_REQUESTS) as pool:
            list(pool.map(lambda name: (self.location / name).remove(), found))
        for name in found:
            del self.sizes[name]

    def read_json(self, name: str) -> Any:
        """Read a JSON object of the folder.

        Raises:
            InputError: The file is damaged.
        """
        file = self.location / name
        return parse_json(file.read(), file, InputError, "start the job again with --restart")

    def write_json(self, name: str, data: Any, *, new: bool = False) -> None:
        """Write a JSON file of the folder.

        Raises:
            FileExistsError: The file exists and `new` is True.
        """
        with (self.location / name).writing(new=new) as temporary:
            temporary.write_bytes(json_bytes(data))

    def sign(self, receipt: Receipt, bad: Sequence[BadRow]) -> None:
        """Write the receipt of a shard whose files are complete."""
        self.write_json(receipt.name, [dataclasses.asdict(row) for row in bad])

    def receipts(self) -> dict[int, Receipt]:
        """Return the receipts of finished shards by index."""
        found = {}
        for name in self.sizes:
            if fnmatch(name, f"{PROGRESS}/*,bytes=*.json"):
                receipt = Receipt.from_name(name)
                parts = self.names(receipt.shard)
                exist = all(part in self.sizes for part in parts)
                if exist and receipt.bytes == sum(self.sizes[part] for part in parts):
                    found[receipt.shard] = receipt
        return found

    def bad_rows(self, receipts: Iterable[Receipt]) -> Iterator[BadRow]:
        """Yield the bad rows of finished shards."""
        files = [self.location / receipt.name for receipt in receipts if receipt.bad_rows]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            for start in range(0, len(files), _REQUESTS):
                for content in pool.map(Location.read, files[start : start + _REQUESTS]):
                    yield from (BadRow(**row) for row in json.loads(content))

    def write_errors(self, receipts: Iterable[Receipt]) -> None:
        """Write the bad rows of shards to _errors.jsonl."""
        with (
            (self.location / ERRORS).writing() as temporary,
            temporary.open("w", encoding="utf-8") as stream,
        ):
            for row in self.bad_rows(receipts):
                stream.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")
