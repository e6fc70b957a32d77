"""Read a shard in chunks of rows. Each chunk is embedded in one call.

The chunks depend only on the shard, and not on the rows read before or on the worker, so that a rerun of the
shard has the same batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import pyarrow as pa

from koe5_onnx import InputError
from koe5_onnx.bulk.columns import rows_of
from koe5_onnx.bulk.input_files import InputFiles, partitions
from koe5_onnx.bulk.job import BulkOptions
from koe5_onnx.bulk.plan import Cursor, Plan, Shard, open_records
from koe5_onnx.bulk.records import RecordFile, in_parts
from koe5_onnx.bulk.rows import Rows, join
from koe5_onnx.bulk.table_files import TableRows, open_table

_CHUNK_ROWS = 4096
"""Maximum rows of a chunk, as many as the pipeline tokenizes together."""
_CHUNK_CHARACTERS = 1 << 18
"""Maximum characters of a chunk, a few hundred pages. The tokenizer needs about 200 bytes per token."""
_CHUNK_BYTES = 16 << 20
"""Maximum size of a chunk in bytes, all columns together."""


class Reader:
    """Reads shards, fastest in ascending order."""

    def __init__(self, source: InputFiles, plan: Plan, options: BulkOptions) -> None:
        self._source, self._plan, self._options = source, plan, options
        self._text = options.text
        self._open: tuple[int, RecordFile | TableRows] | None = None

    def chunks(self, shard: Shard) -> Iterator[Rows]:
        """Yield the rows of a shard in order.

        Raises:
            InputError: The input is damaged, or has changed since the job started.
        """
        return _gather(self._parts(shard))

    def close(self) -> None:
        """Close the open file."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _parts(self, shard: Shard) -> Iterator[Rows]:
        cursor, left = shard.start, shard.rows
        while left:
            here = min(left, self._plan.file_rows[cursor.file] - cursor.row)
            found = 0
            for part in self._read(cursor, here):
                found += part.count
                yield self._partitioned(part, self._source.names[cursor.file])
            if found != here:
                location = self._source.location(self._source.names[cursor.file])
                raise InputError(
                    f"{location} has fewer rows than when the job started. Start the job again with --restart"
                )
            cursor, left = Cursor(cursor.file + 1, 0), left - here

    def _read(self, cursor: Cursor, count: int) -> Iterator[Rows]:
        if not count:
            return
        file = self._file(cursor.file)
        if isinstance(file, TableRows):
            yield from file.read(cursor.row, count)
            return
        file.lines.seek(*max((cursor.offset, cursor.line), file.start))
        row = cursor.row
        for records in in_parts(islice(file.records(), count)):
            yield rows_of(records, self._source.names[cursor.file], row, self._plan.schema, self._text)
            row += len(records)

    def _file(self, index: int) -> RecordFile | TableRows:
        """Return the file with this index. At most one file is open at a time."""
        if self._open is None or self._open[0] != index:
            self.close()
            self._open = (index, self._opened(index))
        return self._open[1]

    def _opened(self, index: int) -> RecordFile | TableRows:
        name = self._source.names[index]
        if self._plan.codecs:
            return open_records(self._source, name, self._plan.codecs[index], self._options)
        file = open_table(self._source.unchanged(name), self._source.kind)
        return TableRows(file, name, self._plan.schema, self._text)

    def _partitioned(self, rows: Rows, file: str) -> Rows:
        """Fill nulls in the rows with the values in the folder names of the file."""
        table = rows.table
        for name, value in partitions(file).items():
            index = table.schema.get_field_index(name)
            column = table.column(index)
            if not column.null_count:
                continue
            try:
                filled = column.fill_null(pa.scalar(value, pa.string()).cast(column.type))
            except pa.ArrowException as error:
                raise InputError(
                    f"the folder {name}={value} of {file} does not fit into the column {name!r} of other "
                    f"files, {column.type}. Rename the column or the folder"
                ) from error
            table = table.set_column(index, table.schema.field(index), filled)
        return replace(rows, table=table)


def _gather(parts: Iterable[Rows]) -> Iterator[Rows]:
    """Group parts into chunks."""
    chunk: list[Rows] = []
    for part in parts:
        if chunk and not _fit([*chunk, part]):
            yield join(chunk)
            chunk = []
        chunk.append(part)
    if chunk:
        yield join(chunk)


def _fit(parts: Sequence[Rows]) -> bool:
    return (
        sum(part.count for part in parts) <= _CHUNK_ROWS
        and sum(len(text) for part in parts for text in part.texts) <= _CHUNK_CHARACTERS
        and sum(part.table.nbytes for part in parts) <= _CHUNK_BYTES
    )
