"""Output formats: the files of a shard, and how rows are written to them.

parquet   one parquet file
jsonl     one JSON object per line. What JSON cannot represent becomes text, bytes become base64, NaN null
npy       an array with the vectors, which numpy can map, and a parquet file of the other columns
lance     one data file of a Lance dataset. The dataset lists its files once the job is complete
"""

from __future__ import annotations

import base64
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from koe5_onnx import InputError, MissingDependencyError

LANCE = "embeddings.lance"
"""Folder of the Lance dataset, in the output folder."""
COLUMNS = "columns"
"""Folder of the parquet files of the format npy. Arrow cannot read a folder of parquet and .npy files."""
_LANCE_VERSION = "2.1"
"""Version of Lance's file format. It is fixed, because different versions of Lance may write the shards."""
_JSON_ROWS = 128
"""Rows that are converted to Python objects at once."""


class ShardWriter(Protocol):
    """Writes the rows of one shard."""

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Append rows."""

    def close(self) -> None:
        """Complete and close the files."""


@dataclass(frozen=True)
class Format:
    """A format of the output."""

    names: tuple[str, ...]
    """Templates for the names of a shard's files, in the output folder."""
    open: Callable[[Sequence[Path], pa.Schema, str], ShardWriter]
    """Creates the files. Its arguments are their paths, the columns, and the name of the vector column."""
    publish: Callable[[Path, Sequence[int]], None] = lambda _folder, _rows: None
    """Completes the output when all shards are finished. Its arguments are the output folder and the number
    of rows of each shard."""


def require_format(name: str) -> None:
    """Check that an output format is known and its package installed.

    Raises:
        InputError: The format is not one of OUTPUT_FORMATS.
        MissingDependencyError: The package of the format is not installed.
    """
    if name not in FORMATS:
        raise InputError(f"output_format is {name!r}: expected one of {', '.join(FORMATS)}")
    if name == "lance":
        _import_lance()


def _parquet(paths: Sequence[Path], schema: pa.Schema, column: str) -> ShardWriter:
    """Create a parquet file. The vectors have no dictionary, which would not make them smaller."""
    others = [name for name in schema.names if name not in (column, f"{column}_scale")]
    writer: ShardWriter = pq.ParquetWriter(paths[0], schema, compression="zstd", use_dictionary=others)
    return writer


class _Npy:
    def __init__(self, paths: Sequence[Path], schema: pa.Schema, column: str) -> None:
        self._column, vectors = column, schema.field(column).type
        self._dim = vectors.list_size
        # In pyarrow 21, `to_pandas_dtype` requires pandas.
        self._dtype = pa.array([], vectors.value_type).to_numpy().dtype
        self._others = _parquet(paths, schema.remove(schema.get_field_index(column)), column)
        self._file = paths[1].open("wb")
        self._rows = 0
        self._write_header()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        self._file.write(batch.column(self._column).flatten().to_numpy())
        self._others.write_batch(batch.drop_columns([self._column]))
        self._rows += len(batch)

    def close(self) -> None:
        # The number of rows is known now. numpy reserves space for it in the header.
        self._file.seek(0)
        self._write_header()
        self._file.close()
        self._others.close()

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self._rows, self._dim)}
        np.lib.format.write_array_header_1_0(self._file, header)


class _JsonLines:
    def __init__(self, paths: Sequence[Path], _schema: pa.Schema, column: str) -> None:
        self._column = column
        self._file = paths[0].open("w", encoding="utf-8", newline="\n")

    def write_batch(self, batch: pa.RecordBatch) -> None:
        for start in range(0, len(batch), _JSON_ROWS):
            part = batch.slice(start, _JSON_ROWS)
            vectors = _json_lists(part.column(self._column))
            for row, vector in zip(_json_rows(part.drop_columns([self._column])), vectors, strict=True):
                begin = json.dumps(row, ensure_ascii=False)[:-1]
                self._file.write(f"{begin}, {json.dumps(self._column)}: [{vector}]}}\n")

    def close(self) -> None:
        self._file.close()


def _json_lists(vectors: pa.FixedSizeListArray) -> list[str]:
    """Return vectors as JSON without brackets. Arrow writes the shortest decimals that are exact."""
    flat = vectors.flatten()
    flat = flat.cast(pa.float32()) if pa.types.is_float16(flat.type) else flat
    ends = pa.array(range(0, len(flat) + 1, vectors.type.list_size), pa.int32())
    found: list[str] = pc.binary_join(
        pa.ListArray.from_arrays(ends, flat.cast(pa.string())), ", "
    ).to_pylist()
    return found


def _json_rows(batch: pa.RecordBatch) -> list[Any]:
    # Python has no nanoseconds, so times are converted to text by Arrow.
    columns = [
        column.cast(pa.string()) if pa.types.is_temporal(column.type) else column for column in batch.columns
    ]
    rows = pa.RecordBatch.from_arrays(columns, batch.schema.names).to_pylist()
    return [_json_value(row) for row in rows]


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(one) for one in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _lance(paths: Sequence[Path], schema: pa.Schema, _column: str) -> ShardWriter:
    _import_lance()
    from lance.file import LanceFileWriter

    writer: ShardWriter = LanceFileWriter(str(paths[0]), schema, version=_LANCE_VERSION)
    return writer


def _import_lance() -> Any:
    try:
        import lance
    except ImportError as error:
        raise MissingDependencyError(str(error.name), "lance", "the output format lance") from error
    return lance


def publish_lance(folder: Path, rows: Sequence[int]) -> None:
    """Make the files of all shards one version of the Lance dataset in the output folder, atomically.

    Lance's own writers name files at random, and add a version for each. A file of a shard is instead written
    under the name of the shard, so that a job can be resumed, and all become visible in one commit.

    Args:
        folder: The output folder.
        rows: Number of rows of each shard.
    """
    lance = _import_lance()
    from lance.file import LanceFileReader
    from lance.fragment import DataFile, FragmentMetadata, write_fragments

    dataset = folder / LANCE
    names = [Path(FORMATS["lance"].names[0].format(shard)).name for shard in range(len(rows))]
    if not names:
        return
    schema = LanceFileReader(str(dataset / "data" / names[0])).metadata().schema
    # All files have the same columns, so their field ids are those of any fragment with this schema.
    one = pa.table([pa.nulls(1, field.type) for field in schema], schema=schema)
    with tempfile.TemporaryDirectory() as name:
        (sample,) = write_fragments(one, name, schema, mode="create", data_storage_version=_LANCE_VERSION)
    (like,) = sample.files
    version = like.file_major_version, like.file_minor_version
    fragments = [
        FragmentMetadata(shard, [DataFile(name, like.fields, like.column_indices, *version)], count)
        for shard, (name, count) in enumerate(zip(names, rows, strict=True))
        if count
    ]
    lance.LanceDataset.commit(dataset, lance.LanceOperation.Overwrite(schema, fragments))


FORMATS: Mapping[str, Format] = {
    "parquet": Format(("part-{:08d}.parquet",), _parquet),
    "jsonl": Format(("part-{:08d}.jsonl",), _JsonLines),
    "npy": Format((f"{COLUMNS}/part-{{:08d}}.parquet", "part-{:08d}.npy"), _Npy),
    "lance": Format((f"{LANCE}/data/part-{{:08d}}.lance",), _lance, publish_lance),
}
OUTPUT_FORMATS = tuple(FORMATS)
"""Choices of `--output-format`."""
