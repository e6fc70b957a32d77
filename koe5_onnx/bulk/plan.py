"""The plan: which rows of the input become which shard, known before the first text is embedded.

A shard is `shard_rows` consecutive rows of the input, bad ones counted, across the ends of files; only the
last may be smaller. Text files are read through once for it, which also finds the schema and costs next to
nothing beside embedding; of parquet files only the footers are read.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from koe5_onnx import InputError
from koe5_onnx.bulk.columns import JsonColumns, csv_schema, require_column
from koe5_onnx.bulk.input_files import InputFiles
from koe5_onnx.bulk.parquet_rows import open_parquet, parquet_schema
from koe5_onnx.bulk.records import CsvFile, JsonLines, Record, RecordFile, in_parts

OnRead = Callable[[int], None]
"""Told the bytes of each file that has been read through."""


@dataclass(frozen=True)
class Cursor:
    """A place in the input, before a row."""

    file: int
    """Which of the input's files."""
    row: int
    """Rows of the file before it."""
    offset: int = 0
    """Bytes of a text file before it, unpacked."""
    line: int = 0
    """Lines of a text file before it."""


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of the input."""

    index: int
    start: Cursor
    rows: int


@dataclass(frozen=True)
class Plan:
    """What the input holds and how it is divided."""

    schema: pa.Schema
    """Of the columns that go through."""
    file_rows: tuple[int, ...]
    """Rows of each file."""
    starts: tuple[Cursor, ...]
    """Where each shard begins."""
    shard_rows: int

    @property
    def rows(self) -> int:
        """Rows of the input, bad ones too."""
        return sum(self.file_rows)

    def shard(self, index: int) -> Shard:
        """One shard."""
        rows = min(self.shard_rows, self.rows - index * self.shard_rows)
        return Shard(index, self.starts[index], rows)

    def as_data(self) -> dict[str, Any]:
        """As plain data for a JSON file."""
        return {
            "schema": base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
            "columns": {field.name: str(field.type) for field in self.schema},
            "file_rows": self.file_rows,
            "shard_rows": self.shard_rows,
            "starts": [[start.file, start.row, start.offset, start.line] for start in self.starts],
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Plan:
        """From `as_data`."""
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(data["schema"])))
        starts = tuple(Cursor(*start) for start in data["starts"])
        return cls(schema, tuple(data["file_rows"]), starts, data["shard_rows"])


def make_plan(
    source: InputFiles, text_column: str, shard_rows: int, on_read: OnRead = lambda _bytes: None
) -> Plan:
    """Plan a job.

    Raises:
        InputError: A file cannot be read, or the column of the texts is not there.
    """
    if source.kind == "parquet":
        return _of_parquet(source, text_column, shard_rows, on_read)
    return _TextPlan(source, text_column, shard_rows).make(on_read)


def _of_parquet(source: InputFiles, text_column: str, shard_rows: int, on_read: OnRead) -> Plan:
    opened = [(path, open_parquet(path)) for path in map(source.path, range(len(source.files)))]
    schema = parquet_schema(opened, text_column)
    file_rows = tuple(file.metadata.num_rows for _, file in opened)
    for described, (_, file) in zip(source.files, opened, strict=True):
        file.close()
        on_read(described.bytes)
    starts = []
    before = 0
    for index, rows in enumerate(file_rows):
        first = -before % shard_rows
        starts += [Cursor(index, row) for row in range(first, rows, shard_rows)]
        before += rows
    return Plan(schema, file_rows, tuple(starts), shard_rows)


class _TextPlan:
    """Reads text files through and notes where shards begin."""

    def __init__(self, source: InputFiles, text_column: str, shard_rows: int) -> None:
        self._source, self._text_column, self._shard_rows = source, text_column, shard_rows
        self._columns = JsonColumns(text_column)
        self._headers: list[list[str]] = []
        self._starts: list[Cursor] = []
        self._rows = 0

    def make(self, on_read: OnRead) -> Plan:
        file_rows = []
        for index, described in enumerate(self._source.files):
            file_rows.append(self._scan(index))
            on_read(described.bytes)
        return Plan(self._schema(), tuple(file_rows), tuple(self._starts), self._shard_rows)

    def _scan(self, index: int) -> int:
        file = open_records(self._source, index)
        rows = 0
        with closing(file):
            if isinstance(file, CsvFile):
                require_column(file.header, self._text_column, file.lines.path)
                self._headers.append(file.header)
            for records in in_parts(file.records()):
                self._note_starts(index, rows, records)
                rows += len(records)
                if self._source.kind == "jsonl":
                    self._columns.add(records)
        return rows

    def _note_starts(self, file: int, row: int, records: list[Record]) -> None:
        for place in range(-self._rows % self._shard_rows, len(records), self._shard_rows):
            record = records[place]
            self._starts.append(Cursor(file, row + place, record.offset, record.line - 1))
        self._rows += len(records)

    def _schema(self) -> pa.Schema:
        if self._source.kind == "csv":
            return csv_schema(self._headers)
        return self._columns.schema()


def open_records(source: InputFiles, index: int) -> RecordFile:
    """Open a text file of the input at its beginning.

    Raises:
        InputError: It has changed, or is CSV without a header.
    """
    path = source.path(index)
    return JsonLines(path) if source.kind == "jsonl" else CsvFile(path)


def require_free_names(schema: pa.Schema, names: list[str]) -> None:
    """Check that the output's own columns are not in the input.

    Raises:
        InputError: One is.
    """
    if taken := [name for name in names if name in schema.names]:
        raise InputError(
            f"the input has a column {taken[0]!r} already: name the embeddings' with --embedding-column"
        )
