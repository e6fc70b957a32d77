"""Embed a table with Spark, from parquet to parquet, with one Embedder per task.

spark-submit docs/examples/spark.py IN OUT ARTIFACT [TEXT_COLUMN]

Requires koe5-onnx[cpu], pyarrow and pandas on every node, and the artifact under the same path. `mapInArrow`
passes whole Arrow batches, so one call embeds all texts of a batch and groups them by length.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType

from koe5_onnx import Embedder

ROWS_PER_BATCH = 2048
THREADS = 1
"""Threads per task. Spark runs one task on each core of an executor (spark.task.cpus)."""


def embedding(
    artifact: str, text_column: str, prompt_name: str
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return a function for `mapInArrow` that appends the column "embedding". No text may be null."""

    def embed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        # Opening takes half a second per task, so partitions should have thousands of rows.
        with Embedder.open(artifact, threads=THREADS) as embedder:
            for batch in batches:
                vectors = embedder.encode(batch.column(text_column).to_pylist(), prompt_name)
                offsets = pa.array(range(0, vectors.size + 1, vectors.shape[1]), pa.int32())
                column = pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)))
                names = [*batch.schema.names, "embedding"]
                yield pa.RecordBatch.from_arrays([*batch.columns, column], names=names)

    return embed


def with_embeddings(
    table: DataFrame, artifact: str, text_column: str, prompt_name: str = "passage"
) -> DataFrame:
    """Return the rows that have a text, with their embeddings."""
    schema = StructType([*table.schema.fields, StructField("embedding", ArrayType(FloatType()))])
    texts = table.where(table[text_column].isNotNull())
    return texts.mapInArrow(embedding(artifact, text_column, prompt_name), schema)


def main(source: str, output: str, artifact: str, text_column: str = "text") -> None:
    """Embed a parquet folder."""
    spark = (
        SparkSession.builder.appName("koe5-onnx")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", ROWS_PER_BATCH)
        .getOrCreate()
    )
    with_embeddings(spark.read.parquet(source), artifact, text_column).write.parquet(output)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
