"""Plan of a job: the division of the input into shards, made before any text is embedded.

A shard is `shard_rows` consecutive rows of the input, including bad rows. It may span files, and only the
last shard may be smaller. Planning reads text files completely, which also finds the schema of JSON lines and
takes little time compared with embedding. Of parquet files it reads only the footers.
"""

from __future__ import annotations

import base64
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from koe5_onnx.bulk.columns import JsonColumns, text_of
from koe5_onnx.bulk.input_files import InputFiles, partitions
from koe5_onnx.bulk.job import BulkOptions
from koe5_onnx.bulk.lines import Lines, codec_of
from koe5_onnx.bulk.records import CsvFile, JsonLines, Record, RecordFile, in_parts
from koe5_onnx.bulk.rows import BadRow, too_many_bad
from koe5_onnx.bulk.table_files import open_table, table_schema

_FIRST_ROWS = 1000
"""Planning checks the share of bad rows after this number of rows of text files, and at the end."""


@dataclass(frozen=True)
class Cursor:
    """Position of a row in the input."""

    file: int
    """Index of the input file."""
    row: int
    """Number of rows before it in the file."""
    offset: int = 0
    """Offset in the decompressed text file, in bytes."""
    line: int = 0
    """Number of lines before it in the text file."""


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of the input."""

    index: int
    start: Cursor
    rows: int


@dataclass(frozen=True)
class Plan:
    """Schema of the input and its division into shards."""

    schema: pa.Schema
    """Schema of the input columns."""
    file_rows: tuple[int, ...]
    """Number of rows of each file."""
    starts: tuple[Cursor, ...]
    """Position of the first row of each shard."""
    shard_rows: int
    codecs: tuple[str, ...] = ()
    """Codec of each text file; empty for parquet and Arrow."""

    @cached_property
    def rows(self) -> int:
        """Number of rows of the input, including bad rows."""
        return sum(self.file_rows)

    def shard(self, index: int) -> Shard:
        """Return a shard."""
        rows = min(self.shard_rows, self.rows - index * self.shard_rows)
        return Shard(index, self.starts[index], rows)

    def as_data(self) -> dict[str, Any]:
        """Return the plan as plain data for a JSON file."""
        return {
            "schema": base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
            "file_rows": self.file_rows,
            "shard_rows": self.shard_rows,
            "codecs": self.codecs,
            "starts": [[start.file, start.row, start.offset, start.line] for start in self.starts],
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Plan:
        """Return the plan from the result of `as_data`."""
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(data["schema"])))
        starts = tuple(Cursor(*start) for start in data["starts"])
        return cls(schema, tuple(data["file_rows"]), starts, data["shard_rows"], tuple(data["codecs"]))


def make_plan(source: InputFiles, options: BulkOptions, max_bad_share: float) -> Plan:
    """Divide the input into shards.

    Raises:
        InputError: A file cannot be read, the text column is missing, or more rows of text files are bad than
            `max_bad_share` allows.
    """
    if source.kind in ("parquet", "arrow"):
        plan = _of_tables(source, options)
    else:
        plan = _TextPlan(source, options, max_bad_share).make()
    names = dict.fromkeys(name for file in source.names for name in partitions(file))
    added = [pa.field(name, pa.string()) for name in names if name not in plan.schema.names]
    return replace(plan, schema=pa.schema([*plan.schema, *added]))


def _of_tables(source: InputFiles, options: BulkOptions) -> Plan:
    schemas, file_rows = [], []
    for name in source.names:
        location = source.unchanged(name)
        with closing(open_table(location, source.kind)) as file:
            schemas.append((location, file.schema))
            file_rows.append(sum(file.sizes))
    schema = table_schema(schemas, options.text)
    shard_rows = options.shard_rows
    starts = []
    before = 0
    for index, rows in enumerate(file_rows):
        first = -before % shard_rows
        starts += [Cursor(index, row) for row in range(first, rows, shard_rows)]
        before += rows
    return Plan(schema, tuple(file_rows), tuple(starts), shard_rows)


class _TextPlan:
    """Read text files and record where each shard starts."""

    def __init__(self, source: InputFiles, options: BulkOptions, max_bad_share: float) -> None:
        self._source, self._options, self._max_bad_share = source, options, max_bad_share
        self._text, self._shard_rows = options.text, options.shard_rows
        self._columns = JsonColumns(self._text)
        self._headers: list[list[str]] = []
        self._starts: list[Cursor] = []
        self._codecs: list[str] = []
        self._rows = self._bad = 0
        self._first_bad: BadRow | None = None

    def make(self) -> Plan:
        file_rows = [self._scan(index) for index in range(len(self._source.names))]
        schema = self._schema()
        self._require_good("")
        return Plan(schema, tuple(file_rows), tuple(self._starts), self._shard_rows, tuple(self._codecs))

    def _scan(self, index: int) -> int:
        """Read a file and return the number of its rows."""
        name = self._source.names[index]
        self._codecs.append(codec_of(self._source.unchanged(name), self._options.encoding))
        rows = 0
        with closing(open_records(self._source, name, self._codecs[-1], self._options)) as file:
            if isinstance(file, CsvFile):
                self._text.require_columns(
                    file.header, file.lines.location, " or the delimiter with --csv-delimiter"
                )
                self._headers.append(file.header)
            for records in in_parts(file.records()):
                good = [
                    record.fields
                    for row, record in enumerate(records, rows)
                    if self._count(record, index, row)
                ]
                rows += len(records)
                if self._source.kind == "jsonl":
                    self._columns.add(records, good)
        return rows

    def _count(self, record: Record, file: int, row: int) -> bool:
        """Count a row, note its position if a shard starts with it, and return True if it is good."""
        if self._rows % self._shard_rows == 0:
            self._starts.append(Cursor(file, row, record.offset, record.line - 1))
        self._rows += 1
        reason = text_of(record, self._text)[1]
        if reason is not None:
            self._bad += 1
            name = self._source.names[file]
            self._first_bad = self._first_bad or BadRow(name, row, record.line, reason)
        if self._rows == _FIRST_ROWS:
            self._require_good("first ")
        return reason is None

    def _require_good(self, which: str) -> None:
        if self._bad > self._max_bad_share * self._rows:
            check = (
                "--text-column, --encoding, --csv-delimiter, --csv-quote and --csv-escape"
                if self._source.kind == "csv"
                else "--text-column, --encoding, and that a line is a JSON object (jq -c .[] splits an array)"
            )
            raise too_many_bad(
                self._bad,
                f"the {which}{self._rows:,} rows",
                self._max_bad_share,
                self._first_bad,
                f"Check {check}, or pass a higher --max-bad-share",
            )

    def _schema(self) -> pa.Schema:
        if self._source.kind == "jsonl":
            return self._columns.schema()
        return pa.schema({name: pa.string() for header in self._headers for name in header})


def open_records(source: InputFiles, name: str, codec: str, options: BulkOptions) -> RecordFile:
    """Open a text file of the input.

    Raises:
        InputError: The file has changed, or it is CSV without a valid header.
    """
    lines = Lines(source.unchanged(name), codec)
    return JsonLines(lines) if source.kind == "jsonl" else CsvFile(lines, options.csv)
