"""Embed files of texts, on one machine or a Ray cluster, resumable and in bounded memory.

`embed_files` is the entry point. Modules::

    embed         runs a job: finds, plans, embeds the missing shards, completes the output
    job           describes the job, so that a different job in the same folder is rejected
    input_files   finds the input files and detects changes
    lines         reads the lines of plain and compressed text files, each with its position
    records       parses JSON lines and CSV files
    table_files   reads parquet and Arrow files
    columns       determines the schema of JSON lines, and converts records to tables
    rows          defines the text of a row, good rows and bad rows
    plan          divides the rows of all files into shards of equal size
    reader        reads a shard in chunks of rows
    worker        reads, embeds and writes a shard
    vectors       converts embeddings to columns: float32, float16, int8, binary
    formats       writes the files of a shard: parquet, JSON lines, npy, Lance
    shards        manages the output folder: file names, receipts of finished shards
    ray_engine    runs workers on a Ray cluster

This package requires the extra `bulk`, and the extra `ray` for the Ray engine.
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
