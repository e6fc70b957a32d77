"""Embed files of texts, on one machine or a Ray cluster, resumable and in bounded memory.

Modules, in the order in which a row passes through them::

    input_files   finds the input files and detects later changes
    lines,        read text files as records, each with its position
    records
    table_files   reads parquet and Arrow files as rows
    columns       determines the schema of the output
    rows          separates good rows, as a table, from bad rows, each with a reason
    plan          divides the rows of all files into shards of equal size
    reader        reads a shard in chunks of rows
    vectors       converts embeddings to columns: float32, float16, int8, binary
    formats       writes the files of a shard: parquet, JSON lines, npy, Lance
    worker        reads, embeds and writes a shard
    shards        manages the output folder: file names, receipts of finished shards
    job           describes the job, so that a different job in the same folder is rejected
    local,        run the shards in this process or on a Ray cluster
    ray_engine

`embed` is the entry point. This package requires the extra `bulk`, and the extra `ray` for the Ray engine. No
other package imports it.
"""

from __future__ import annotations

from koe5_onnx.errors import MissingDependencyError

try:
    import filelock
    import pyarrow as pa
except ImportError as error:
    raise MissingDependencyError(str(error.name), "bulk", "embedding files in bulk") from error

from koe5_onnx.bulk.embed import embed_files
from koe5_onnx.bulk.formats import OUTPUT_FORMATS
from koe5_onnx.bulk.job import BulkOptions, Summary
from koe5_onnx.bulk.ray_engine import RayOptions
from koe5_onnx.bulk.records import Dialect
from koe5_onnx.bulk.vectors import OUTPUT_DTYPES, unpack
from koe5_onnx.bulk.worker import Progress

__all__ = [
    "OUTPUT_DTYPES",
    "OUTPUT_FORMATS",
    "BulkOptions",
    "Dialect",
    "Progress",
    "RayOptions",
    "Summary",
    "embed_files",
    "unpack",
]

del filelock, pa
