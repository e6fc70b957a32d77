"""Read parquet and Arrow files as rows, in bounded memory even if a parquet file is a single row group.

Reading continues after the rows read last. Moving to other rows decodes their row group from its start,
because parquet has no random access within a row group. pyarrow.dataset is not used for parquet, because its
scanner keeps a whole row group in memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, islice
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from koe5_onnx import InputError
from koe5_onnx.bulk.columns import common_type
from koe5_onnx.bulk.input_files import Kind
from koe5_onnx.bulk.rows import Place, Rows, Text
from koe5_onnx.stores import Location

_BATCH_ROWS = 128
_BATCH_BYTES = 4 << 20
"""Maximum decompressed size of a batch over all columns, for rows of the average size of their row group."""
_BUFFER_BYTES = 1 << 20
"""Size of the read buffer. Without a buffer Arrow reads whole column chunks into memory."""
_MANTISSA_BITS = {16: 11, 32: 24, 64: 53}
"""Bits of the integers that a float represents exactly, by the bits of the float."""


class TableFile(Protocol):
    """An open parquet or Arrow file."""

    schema: pa.Schema
    sizes: list[int]
    """Number of rows of each row group or record batch."""

    def batches(self, first: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in small batches, from the row group or record batch `first` on."""

    def close(self) -> None:
        """Close the file."""


class _ParquetFile:
    def __init__(self, location: Location) -> None:
        self._stream = location.open()
        self._file = pq.ParquetFile(self._stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        metadata = self._file.metadata
        self.schema = self._file.schema_arrow
        self.sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def batches(self, first: int) -> Iterator[pa.RecordBatch]:
        for group in range(first, len(self.sizes)):
            rows = _rows_per_batch(self._file.metadata.row_group(group).total_byte_size, self.sizes[group])
            yield from self._file.iter_batches(rows, row_groups=[group], use_threads=False)

    def close(self) -> None:
        self._stream.close()


class _ArrowFile:
    """A file of Arrow's IPC format (Feather), or of its stream format, which has no index of the batches."""

    def __init__(self, location: Location) -> None:
        self._source = (
            pa.memory_map(location.path) if location.is_local else pa.PythonFile(location.open(), "r")
        )
        self._is_stream = self._source.read(6) != b"ARROW1"
        with self._reader() as reader:
            self.schema = reader.schema
        self.sizes = [batch.num_rows for batch in self._all(0)]

    def batches(self, first: int) -> Iterator[pa.RecordBatch]:
        for batch in self._all(first):
            rows = _rows_per_batch(batch.nbytes, batch.num_rows)
            yield from (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))

    def close(self) -> None:
        self._source.close()

    def _reader(self) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
        self._source.seek(0)
        return pa.ipc.open_stream(self._source) if self._is_stream else pa.ipc.open_file(self._source)

    def _all(self, first: int) -> Iterator[pa.RecordBatch]:
        reader = self._reader()
        if self._is_stream:
            return islice(reader, first, None)
        return map(reader.get_batch, range(first, reader.num_record_batches))


def open_table(location: Location, kind: Kind) -> TableFile:
    """Open a file and read its schema and the number of its rows.

    Raises:
        InputError: The file is damaged or has another format.
    """
    with named_damage(f"{location} is not {'a parquet' if kind == 'parquet' else 'an Arrow'} file"):
        return _ParquetFile(location) if kind == "parquet" else _ArrowFile(location)


@contextmanager
def named_damage(problem: str) -> Iterator[None]:
    """Return a context manager that raises pyarrow's errors as InputError. `problem` starts its message."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk or of the network
        raise InputError(f"{problem} ({error}). Download it again") from error


def _rows_per_batch(size: int, rows: int) -> int:
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, size // max(1, rows))))


def table_schema(files: Sequence[tuple[Location, pa.Schema]], text: Text) -> pa.Schema:
    """Return the columns of all files. A column that a file lacks is null in its rows.

    Raises:
        InputError: A file lacks a column of the text, such a column is not text, a file has two columns with
            the same name, or the types of a column have no common type without loss.
    """
    types: dict[str, pa.DataType] = {}
    origin: dict[str, Location] = {}
    for location, schema in files:
        text.require_columns(schema.names, location)
        if duplicates := sorted(name for name, times in Counter(schema.names).items() if times > 1):
            raise InputError(
                f"{location} has several columns with the same name: {', '.join(duplicates)}. "
                "Rename all but one"
            )
        for name in text.names:
            _require_text(_text_column(schema.empty_table(), name), name, location)
        for field in schema:
            found = _promoted(types.get(field.name, pa.null()), field.type)
            if found is None:
                raise InputError(
                    f"the columns of the input files do not match: {field.name!r} is {types[field.name]} in "
                    f"{origin[field.name]} and {field.type} in {location}. No common type holds all values. "
                    "Convert one of the files, or embed them separately"
                )
            if found != types.get(field.name):
                types[field.name], origin[field.name] = found, location
    return pa.schema(list(types.items()))


def _promoted(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return a type that can represent all values of both; None if there is none."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    a, b = _plain(a), _plain(b)
    found = common_type(a, b)
    return None if found is None or _loses(a, found) or _loses(b, found) else found


def _plain(given: pa.DataType) -> pa.DataType:
    """Return the plain type of a dictionary or a view, which Arrow cannot combine with other types."""
    if pa.types.is_dictionary(given):
        return _plain(given.value_type)
    if pa.types.is_struct(given):
        return pa.struct([field.with_type(_plain(field.type)) for field in given])
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return views.get(given, given)


def _loses(given: pa.DataType, found: pa.DataType) -> bool:
    """Return True if converting values of type `given` to `found` may change them."""
    if pa.types.is_struct(given):
        return any(_loses(field.type, found.field(field.name).type) for field in given)
    if given.num_fields:  # a list or a map
        return _loses(given.field(0).type, found.field(0).type)
    if pa.types.is_integer(given) and pa.types.is_floating(found):
        return bool(given.bit_width > _MANTISSA_BITS[found.bit_width])
    if given == pa.uint64() and pa.types.is_integer(found):
        return bool(found != given)
    return bool(pa.types.is_decimal(given) and pa.types.is_floating(found))


def _text_column(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    """Return a column, or a field of a struct as "a.b"; None if there is none."""
    while name not in table.column_names and any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table.column(name) if name in table.column_names else None


def _require_text(column: pa.ChunkedArray | None, name: str, location: Location) -> None:
    kinds = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_null,
    )
    found = None if column is None else column.type
    if found is None or not any(kind(_plain(found)) for kind in kinds):
        raise InputError(f"the column {name!r} of {location} is {found}: expected text")


class TableRows:
    """Rows of an open table, with the columns of a schema. Reading is fastest in ascending order of rows."""

    def __init__(self, file: TableFile, name: str, schema: pa.Schema, text: Text) -> None:
        self._file, self._name, self._schema, self._text = file, name, schema, text
        self._ends = list(accumulate(file.sizes))
        self._row = 0
        """Row number of the first row of `_batch`."""
        self._batch: pa.Table = file.schema.empty_table()
        self._batches = file.batches(0)

    def read(self, start: int, count: int) -> Iterator[Rows]:
        """Yield `count` rows from row `start` on, in parts; fewer at the end of the file.

        Raises:
            InputError: The file is damaged.
        """
        end = start + count
        self._go_to(start)
        while start < end and self._has(start):
            part = self._batch.slice(start - self._row, end - start)
            yield self._rows(part, start)
            start += len(part)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _go_to(self, start: int) -> None:
        """Continue with the row group of the row `start`, unless reading on reaches it sooner."""
        group = bisect_right(self._ends, start)
        begin = self._ends[group - 1] if group else 0
        if start < self._row or begin > self._row + len(self._batch):
            self._row, self._batch = begin, self._batch.slice(0, 0)
            self._batches = self._file.batches(group)

    def _has(self, row: int) -> bool:
        """Read batches up to the one with this row. Return False at the end of the file."""
        while row >= self._row + len(self._batch):
            self._row += len(self._batch)
            with named_damage(f"{self._name} is damaged after row {self._row}"):
                batch = next(self._batches, None)
            self._batch = self._batch.slice(0, 0) if batch is None else pa.Table.from_batches([batch])
            if batch is None:
                return False
        return True

    def _rows(self, table: pa.Table, first: int) -> Rows:
        columns = [_bytes_of(table, name) for name in self._text.names]
        found = [self._text.of_values(values) for values in zip(*columns, strict=True)]
        good = table.filter(pa.array([reason is None for _, reason in found]))
        places: list[Place] = [(self._name, row, None) for row in range(first, first + len(table))]
        return Rows.of(places, found, self._conform(good))

    def _conform(self, table: pa.Table) -> pa.Table:
        """Return the table with the columns of the schema, in their order. Missing columns are null."""
        columns = []
        for field in self._schema:
            exists = field.name in table.column_names
            column = table.column(field.name) if exists else pa.nulls(len(table), field.type)
            try:
                columns.append(column.cast(field.type))
            except pa.ArrowException as error:
                raise InputError(
                    f"the column {field.name!r} of {self._name} does not fit into {field.type}, its type in "
                    f"other files ({error}). Convert the column, or embed the files separately"
                ) from error
        return pa.table(columns, schema=self._schema)


def _bytes_of(table: pa.Table, name: str) -> list[bytes | None]:
    """Return texts as bytes, because Arrow does not check that strings of a file are valid UTF-8."""
    column: Any = _text_column(table, name)  # `table_schema` has checked that it exists
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    found: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return found
