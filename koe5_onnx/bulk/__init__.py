"""Files of texts to parquet files with embeddings: on one machine or a cluster, resumable, memory bounded.

What happens to a row, one file a step::

    input_files   the input: which files, of which kind, unchanged since
    lines,        text files to records, each with its position
    records
    parquet_rows  parquet files to rows
    columns       the schema of the output: of parquet files as it is, of JSON from all their objects
    rows          good rows as a table and their texts; bad rows with the reason
    plan          input rows to shards: row 0 to N-1 is shard 0, whatever files they come from
    reader        a shard's rows, a window at a time
    vectors       embeddings to columns: float32, float16, int8, binary
    worker        reads, embeds and writes one shard
    shards        the output folder: names, receipts, what is finished
    job           what was asked: another job in the same folder is refused
    local,        who works: this process, or the actors of a Ray cluster
    ray_engine

`embed` puts them together. Needs the extra `bulk`, and `ray` for that engine; nothing else imports this.
"""

from __future__ import annotations

from koe5_onnx.errors import MissingDependencyError

try:
    import filelock
    import pyarrow as pa
except ImportError as error:
    raise MissingDependencyError(str(error.name), "bulk", "embedding files in bulk") from error

from koe5_onnx.bulk.embed import embed_files
from koe5_onnx.bulk.job import BulkOptions, Summary
from koe5_onnx.bulk.ray_engine import RayOptions
from koe5_onnx.bulk.vectors import OUTPUT_DTYPES, unpack
from koe5_onnx.bulk.worker import Progress

__all__ = ["OUTPUT_DTYPES", "BulkOptions", "Progress", "RayOptions", "Summary", "embed_files", "unpack"]

del filelock, pa
