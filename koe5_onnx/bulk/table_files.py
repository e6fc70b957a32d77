"""Read parquet and Arrow files as rows, in bounded memory even if a parquet file is a single row group.

Reading continues where the last rows ended. Moving elsewhere decodes the row group from its start, because
parquet has no random access within a row group. pyarrow.dataset is not used, because its scanner cannot be
resumed within a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from koe5_onnx import InputError
from koe5_onnx.bulk.input_files import Kind
from koe5_onnx.bulk.rows import BadRow, Place, Rows, Text
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
        """Yield the rows in small batches, from the row group `first` on."""

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
    try:
        return _ParquetFile(location) if kind == "parquet" else _ArrowFile(location)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        name = "a parquet file" if kind == "parquet" else "an Arrow file"
        raise InputError(f"{location} is not {name} ({error}). Download it again") from error


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
            _require_text_type(_type_at(schema, name), name, location)
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
    """Return the smallest type that can represent all values of both; None if there is none."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    a, b = _plain(a), _plain(b)
    if a == b:
        return a
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _promoted_struct(a, b)
    if _is_list(a) and _is_list(b):
        value = _promoted(a.value_type, b.value_type)
        is_large = pa.types.is_large_list(a) or pa.types.is_large_list(b)
        return None if value is None else pa.large_list(value) if is_large else pa.list_(value)
    try:
        schemas = [pa.schema([("it", a)]), pa.schema([("it", b)])]
        found = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None
    return None if _loses(a, found) or _loses(b, found) else found


def _promoted_struct(a: pa.StructType, b: pa.StructType) -> pa.DataType | None:
    types = {field.name: field.type for field in a}
    for field in b:
        found = _promoted(types.get(field.name, pa.null()), field.type)
        if found is None:
            return None
        types[field.name] = found
    return pa.struct(list(types.items()))


def _is_list(given: pa.DataType) -> bool:
    return bool(pa.types.is_list(given) or pa.types.is_large_list(given))


def _plain(given: pa.DataType) -> pa.DataType:
    """Return the plain type of a dictionary or a view, which Arrow cannot combine with other types."""
    if pa.types.is_dictionary(given):
        return _plain(given.value_type)
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return views.get(given, given)


def _loses(given: pa.DataType, found: pa.DataType) -> bool:
    """Return True if converting values of type `given` to `found` may change them."""
    if pa.types.is_integer(given) and pa.types.is_floating(found):
        return bool(given.bit_width > _MANTISSA_BITS[found.bit_width])
    if given == pa.uint64() and pa.types.is_integer(found):
        return bool(found != given)
    return bool(pa.types.is_decimal(given) and pa.types.is_floating(found))


def _type_at(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of a column or of a field of a struct; None if there is none."""
    if name in schema.names:
        return schema.field(name).type
    head, _, rest = name.partition(".")
    found = schema.field(head).type if head in schema.names else None
    return _type_at(pa.schema(list(found)), rest) if found is not None and pa.types.is_struct(found) else None


def _require_text_type(found: pa.DataType | None, name: str, location: Location) -> None:
    inner = found.value_type if found is not None and pa.types.is_dictionary(found) else found
    kinds = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_null,
    )
    if inner is None or not any(kind(inner) for kind in kinds):
        raise InputError(f"the column {name!r} of {location} is {found}: expected text")


class TableRows:
    """Rows of an open table. Reading is fastest in ascending order of rows.

    Args:
        file: The file, which `close` closes.
        name: Name of the file in bad rows and messages.
        schema: Schema of the plan.
        text: Columns that contain the text of a row.
    """

    def __init__(self, file: TableFile, name: str, schema: pa.Schema, text: Text) -> None:
        self._file, self._name, self._schema, self._text = file, name, schema, text
        self._ends = list(accumulate(file.sizes))
        self._row = 0
        self._rest: pa.Table | None = None
        self._batches = file.batches(0)

    def read(self, start: int, count: int) -> Iterator[Rows]:
        """Yield `count` rows from row `start` on, in parts; fewer at the end of the file.

        Raises:
            InputError: The file is damaged.
        """
        self._go_to(start)
        while count and (table := self._next(count)) is not None:
            yield self._rows(table)
            self._row += len(table)
            count -= len(table)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _go_to(self, start: int) -> None:
        group = next((place for place, end in enumerate(self._ends) if start < end), len(self._ends))
        begin = self._ends[group - 1] if group else 0
        if start < self._row or begin > self._row:
            self._row, self._rest, self._batches = begin, None, self._file.batches(group)
        while self._row < start and (table := self._next(start - self._row)) is not None:
            self._row += len(table)

    def _next(self, most: int) -> pa.Table | None:
        """Return at most `most` of the next rows; None at the end of the file."""
        table = self._rest if self._rest is not None else self._read()
        if table is None:
            return None
        self._rest = table.slice(most) if len(table) > most else None
        return table.slice(0, most)

    def _read(self) -> pa.Table | None:
        try:
            batch = next(self._batches, None)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self._name} is damaged after row {self._row} ({error}). Download it again"
            ) from error
        return None if batch is None else pa.Table.from_batches([batch])

    def _rows(self, table: pa.Table) -> Rows:
        texts, bad, kept = [], [], []
        columns = [_bytes_of(table, name) for name in self._text.names]
        for row, values in enumerate(zip(*columns, strict=True), self._row):
            text, reason = self._text.of_values(values)
            kept.append(reason is None)
            if reason is None:
                texts.append(text)
            else:
                bad.append(BadRow(self._name, row, None, reason))
        good = self._conform(table.filter(pa.array(kept)) if bad else table)
        places: list[Place] = [(self._name, self._row + row, None) for row, good in enumerate(kept) if good]
        return Rows(len(table), good, texts, places, bad)

    def _conform(self, table: pa.Table) -> pa.Table:
        """Return the table with the columns of the schema, in their order. Missing columns are null."""
        columns = []
        for field in self._schema:
            if field.name not in table.column_names:
                columns.append(pa.nulls(len(table), field.type))
                continue
            column = table.column(field.name)
            try:
                columns.append(column if column.type == field.type else _cast(column, field.type))
            except pa.ArrowException as error:
                raise InputError(
                    f"the column {field.name!r} of {self._name} does not fit into {field.type}, its type in "
                    f"other files ({error}). Convert the column, or embed the files separately"
                ) from error
        return pa.table(columns, schema=self._schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Cast a column. pyarrow 17 cannot cast a struct to one with more fields."""
    if not pa.types.is_struct(kind) or not pa.types.is_struct(column.type):
        return column.cast(kind)
    names = [field.name for field in column.type]
    fields = [
        _cast(pc.struct_field(column, [field.name]), field.type).combine_chunks()
        if field.name in names
        else pa.nulls(len(column), field.type)
        for field in kind
    ]
    mask = column.is_null().combine_chunks()
    return pa.chunked_array([pa.StructArray.from_arrays(fields, fields=list(kind), mask=mask)])


def _bytes_of(table: pa.Table, name: str) -> list[bytes | None]:
    """Return texts as bytes, because Arrow does not check that strings of a file are valid UTF-8."""
    if name in table.column_names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        found: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
        return found
    head, _, rest = name.partition(".")
    column = table.column(head)
    child = rest if rest in [field.name for field in column.type] else rest.partition(".")[0]
    return _bytes_of(pa.table({child: pc.struct_field(column, [child])}), rest)
