"""Embed a table with Spark: parquet in, parquet out, one Embedder a task.

spark-submit docs/examples/spark.py IN OUT ARTIFACT [TEXT_COLUMN]

Needs koe5-onnx[cpu], pyarrow and pandas on every node, and the artifact under the same path. `mapInArrow`
hands over whole Arrow batches: the texts of a batch are embedded in one call and fill its batches of tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType

from koe5_onnx import Embedder

ROWS_A_BATCH = 2048
THREADS = 1
"""Of a task. Spark runs one on each core of an executor (spark.task.cpus)."""


def embedding(
    artifact: str, text_column: str, prompt_name: str
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """A function for `mapInArrow`: batches with the column "embedding" at their end; no row may be null."""

    def embed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        # Once a task: half a second, so partitions should be of thousands of rows.
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
    """The rows that have a text, and their embeddings."""
    schema = StructType([*table.schema.fields, StructField("embedding", ArrayType(FloatType()))])
    texts = table.where(table[text_column].isNotNull())
    return texts.mapInArrow(embedding(artifact, text_column, prompt_name), schema)


def main(source: str, output: str, artifact: str, text_column: str = "text") -> None:
    """Embed a parquet folder."""
    spark = (
        SparkSession.builder.appName("koe5-onnx")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", ROWS_A_BATCH)
        .getOrCreate()
    )
    with_embeddings(spark.read.parquet(source), artifact, text_column).write.parquet(output)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
