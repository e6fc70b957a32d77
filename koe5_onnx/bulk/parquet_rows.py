"""Parquet files to rows, in bounded memory even where a file is one row group.

A file is read on from where the last rows ended; going elsewhere decodes its row group from the beginning,
since parquet has no other way in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from koe5_onnx import InputError
from koe5_onnx.bulk.columns import require_column
from koe5_onnx.bulk.rows import BadRow, Place, Rows, decode

_BATCH_ROWS = 128
_BATCH_BYTES = 4 << 20
"""Of all columns, unpacked: what a batch may have on average."""
_BUFFER_BYTES = 1 << 20
"""Column chunks come through a buffer of this size; without one they would be read whole."""


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a file and read its footer.

    Raises:
        InputError: It is not parquet.
    """
    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a parquet file ({error}): fetch it again") from error


def parquet_schema(files: Sequence[tuple[Path, pq.ParquetFile]], text_column: str) -> pa.Schema:
    """The columns of all files; one that a file lacks is null in its rows.

    Raises:
        InputError: A file lacks the column of the texts, it holds no texts, or types differ.
    """
    schemas = []
    for path, file in files:
        schema = file.schema_arrow.remove_metadata()
        require_column(schema.names, text_column, path)
        if len(set(schema.names)) < len(schema.names):
            raise InputError(f"{path} has two columns of one name: {', '.join(schema.names)}")
        _require_text_type(schema.field(text_column).type, text_column, path)
        schemas.append(schema)
    try:
        return pa.unify_schemas(schemas)
    except pa.ArrowException as error:
        raise InputError(
            f"the input's files do not have the same columns ({error}): embed them apart"
        ) from error


def _require_text_type(found: pa.DataType, text_column: str, path: Path) -> None:
    inner = found.value_type if pa.types.is_dictionary(found) else found
    kinds = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_null,
    )
    if not any(kind(inner) for kind in kinds):
        raise InputError(f"{path}: the column {text_column!r} is {found}: expected text")


class ParquetRows:
    """An open file, read forward.

    Args:
        path: The file.
        name: What bad rows call it.
        schema: Of the plan.
        text_column: The column of the texts.
    """

    def __init__(self, path: Path, name: str, schema: pa.Schema, text_column: str) -> None:
        self._file = open_parquet(path)
        self._name, self._schema, self._text_column = name, schema, text_column
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._ends = [sum(sizes[: group + 1]) for group in range(len(sizes))]
        self._row = 0
        self._rest: pa.Table | None = None
        self._batches = self._open(0)

    def read(self, start: int, count: int) -> Iterator[Rows]:
        """`count` rows from `start` on, in parts; fewer where the file ends.

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
            self._row, self._rest, self._batches = begin, None, self._open(group)
        while self._row < start and (table := self._next(start - self._row)) is not None:
            self._row += len(table)

    def _next(self, most: int) -> pa.Table | None:
        """The next rows, `most` of them or fewer."""
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
                f"{self._name} is damaged after row {self._row} ({error}): fetch it again"
            ) from error
        return None if batch is None else pa.Table.from_batches([batch])

    def _open(self, first: int) -> Iterator[pa.RecordBatch]:
        for group in range(first, len(self._ends)):
            found = self._file.metadata.row_group(group)
            average = max(1, found.total_byte_size // max(1, found.num_rows))
            rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // average))
            yield from self._file.iter_batches(rows, row_groups=[group], use_threads=False)

    def _rows(self, table: pa.Table) -> Rows:
        texts, bad, kept = [], [], []
        for row, content in enumerate(_bytes_of(table.column(self._text_column)), self._row):
            text, reason = ("", "null: expected text") if content is None else decode(content)
            kept.append(reason is None)
            if reason is None:
                texts.append(text)
            else:
                bad.append(BadRow(self._name, row, None, reason))
        whole = _conform(table, self._schema)
        places: list[Place] = [(self._name, self._row + row, None) for row, good in enumerate(kept) if good]
        return Rows(len(table), whole.filter(pa.array(kept)) if bad else whole, texts, places, bad)


def _bytes_of(column: pa.ChunkedArray) -> list[bytes | None]:
    """The texts undecoded: Arrow takes what a file says is UTF-8 on trust."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    found: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return found


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of the schema, in its order."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
        else:
            column = table.column(field.name)
            columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.table(columns, schema=schema)
