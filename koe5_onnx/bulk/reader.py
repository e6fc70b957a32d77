"""Shards of the input to windows of rows: what is embedded in one call.

A window's rows depend on its shard alone, not on what was read before, nor on who reads: so that a shard that
is embedded again, anywhere, has the same batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from koe5_onnx import InputError
from koe5_onnx.bulk.columns import rows_of
from koe5_onnx.bulk.input_files import InputFiles
from koe5_onnx.bulk.parquet_rows import ParquetRows
from koe5_onnx.bulk.plan import Cursor, Plan, Shard, open_records
from koe5_onnx.bulk.records import RecordFile, in_parts
from koe5_onnx.bulk.rows import Rows, join

_WINDOW_ROWS = 4096
"""As many as the pipeline tokenizes at once: full batches of nearly every length."""
_WINDOW_CHARACTERS = 1 << 18
"""Some hundred pages: the tokenizer needs about 200 bytes a token while it works."""
_WINDOW_BYTES = 16 << 20
"""Of all columns."""


class Reader:
    """Reads shards; fastest in their order.

    Args:
        source: The input.
        plan: Its plan.
        text_column: The column of the texts.
    """

    def __init__(self, source: InputFiles, plan: Plan, text_column: str) -> None:
        self._source, self._plan, self._text_column = source, plan, text_column
        self._open: tuple[int, RecordFile | ParquetRows] | None = None

    def windows(self, shard: Shard) -> Iterator[Rows]:
        """The rows of a shard in order, some thousands at a time.

        Raises:
            InputError: The input is damaged, or has changed since it was planned.
        """
        return _gather(self._parts(shard))

    def close(self) -> None:
        """Close the file that is open."""
        if self._open is not None:
            file = self._open[1]
            file.close()
            self._open = None

    def _parts(self, shard: Shard) -> Iterator[Rows]:
        cursor, left = shard.start, shard.rows
        while left:
            here = min(left, self._plan.file_rows[cursor.file] - cursor.row)
            found = 0
            for part in self._read(cursor, here):
                found += part.count
                yield part
            if found != here:
                path = self._source.folder / self._source.files[cursor.file].name
                raise InputError(f"{path} has fewer rows than when the job began: start it with --restart")
            cursor, left = Cursor(cursor.file + 1, 0), left - here

    def _read(self, cursor: Cursor, count: int) -> Iterator[Rows]:
        if not count:
            return
        file = self._file(cursor.file)
        if isinstance(file, ParquetRows):
            yield from file.read(cursor.row, count)
            return
        file.lines.seek(cursor.offset, cursor.line)
        row = cursor.row
        for records in in_parts(islice(file.records(), count)):
            name = self._source.files[cursor.file].name
            yield rows_of(records, name, row, self._plan.schema, self._text_column)
            row += len(records)

    def _file(self, index: int) -> RecordFile | ParquetRows:
        """The file, the one that is open where it is that."""
        if self._open is None or self._open[0] != index:
            self.close()
            self._open = (index, self._opened(index))
        return self._open[1]

    def _opened(self, index: int) -> RecordFile | ParquetRows:
        if self._source.kind != "parquet":
            return open_records(self._source, index)
        name = self._source.files[index].name
        return ParquetRows(self._source.path(index), name, self._plan.schema, self._text_column)


def _gather(parts: Iterable[Rows]) -> Iterator[Rows]:
    """Parts into windows."""
    window: list[Rows] = []
    for part in parts:
        if window and not _fit([*window, part]):
            yield join(window)
            window = []
        window.append(part)
    if window:
        yield join(window)


def _fit(parts: Sequence[Rows]) -> bool:
    return (
        sum(part.count for part in parts) <= _WINDOW_ROWS
        and sum(part.characters for part in parts) <= _WINDOW_CHARACTERS
        and sum(part.table.nbytes for part in parts) <= _WINDOW_BYTES
    )
