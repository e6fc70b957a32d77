"""Each output format has the same rows and vectors and can be resumed. Other programs read parquet and Lance.

A test of a program is skipped if it is not installed; `nox -s examples` installs all of them except Spark.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_output import errors_of, output_of

from koe5_onnx import InputError, MissingDependencyError
from koe5_onnx.bulk import OUTPUT_FORMATS
from koe5_onnx.bulk.formats import LANCE

ROWS, SHARD_ROWS = 30, 7
DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "binary": np.uint8}
MORE = pa.table(
    {
        "id": pa.array(range(ROWS)),
        "text": [None if row == 11 else f"문장 {row}\n" * (row % 4) for row in range(ROWS)],
        "when": pa.array([dt.datetime(2024, 5, 1, 12, 30)] * ROWS, pa.timestamp("ns")),
        "raw": [b"\x00\xff"] * ROWS,
        "score": [float("nan") if row == 3 else 0.5 for row in range(ROWS)],
        "tags": [[{"a": row, "b": None}] for row in range(ROWS)],
    }
)


def require(output_format):
    if output_format == "lance":
        pytest.importorskip("lance")


def rows_of(folder, output_format):
    """Return the ids and the vectors of an output folder, in order."""
    if output_format == "parquet":
        table = output_of(folder)
        return table.column("id").to_pylist(), table.column("embedding").to_pylist()
    if output_format == "npy":
        vectors = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("part-*.npy"))]
        return output_of(folder / "columns").column("id").to_pylist(), np.concatenate(vectors).tolist()
    if output_format == "lance":
        import lance

        table = lance.dataset(folder / LANCE).to_table()
        return table.column("id").to_pylist(), table.column("embedding").to_pylist()
    lines = [path.read_bytes().splitlines() for path in sorted(folder.glob("part-*.jsonl"))]
    rows = [json.loads(line) for part in lines for line in part]
    return [row["id"] for row in rows], [row["embedding"] for row in rows]


@pytest.fixture
def table(tmp_path):
    pq.write_table(MORE, tmp_path / "in.parquet")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_all_formats_hold_the_same(embed, table, tmp_path, output_format, dtype):
    require(output_format)
    embed("in.parquet", "plain", shard_rows=SHARD_ROWS, output_dtype=dtype)
    summary = embed("in.parquet", shard_rows=SHARD_ROWS, output_dtype=dtype, output_format=output_format)
    assert (summary.rows, summary.bad_rows, summary.shards) == (ROWS - 1, 1, 5)
    expected, found = rows_of(tmp_path / "plain", "parquet"), rows_of(tmp_path / "out", output_format)
    assert found[0] == expected[0] == [row for row in range(ROWS) if row != 11]
    np.testing.assert_array_equal(np.array(found[1], DTYPES[dtype]), np.array(expected[1], DTYPES[dtype]))
    assert errors_of(tmp_path / "out") == errors_of(tmp_path / "plain")


def test_a_line_of_json(embed, table, tmp_path):
    embed("in.parquet", output_format="jsonl", output_dtype="int8")
    line = (tmp_path / "out/part-00000000.jsonl").read_bytes().splitlines()[3]
    row = json.loads(line, parse_constant=pytest.fail)
    assert list(row) == [*MORE.column_names, "embedding_scale", "embedding"]
    assert (row["text"], row["score"], row["tags"]) == ("문장 3\n" * 3, None, [{"a": 3, "b": None}])
    assert row["when"].startswith("2024-05-01 12:30:00")
    assert base64.b64decode(row["raw"]) == b"\x00\xff"


def test_the_other_columns_of_npy(embed, table, tmp_path):
    embed("in.parquet", "plain", output_dtype="int8")
    embed("in.parquet", output_dtype="int8", output_format="npy")
    expected = output_of(tmp_path / "plain").drop_columns(["embedding", "score"])  # NaN is not equal to NaN
    assert output_of(tmp_path / "out/columns").drop_columns(["score"]).equals(expected)


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_shards_without_rows(embed, put, tmp_path, output_format):
    require(output_format)
    put("in.jsonl", b'{"id": 1, "text": "a"}\n{"id": 2, "text": null}\n{"id": 3, "text": "b"}\n')
    embed("in.jsonl", shard_rows=1, output_format=output_format)
    assert rows_of(tmp_path / "out", output_format)[0] == [1, 3]
    put("none.jsonl", b"")
    assert embed("none.jsonl", "none", output_format=output_format).rows == 0


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_a_lost_file_is_made_again(embed, table, tmp_path, output_format):
    require(output_format)
    folder = tmp_path / "out"
    embed("in.parquet", shard_rows=SHARD_ROWS, output_format=output_format)
    files = {path: path.read_bytes() for path in folder.rglob("part-00000002.*")}
    for path, content in files.items():
        path.unlink()
        assert embed("in.parquet", shard_rows=SHARD_ROWS, output_format=output_format).shards_before == 4
        assert path.read_bytes() == content
        path.write_bytes(content[:-1])
        assert embed("in.parquet", shard_rows=SHARD_ROWS, output_format=output_format).shards_before == 4
        assert path.read_bytes() == content
    assert len(rows_of(folder, output_format)[0]) == ROWS - 1


def test_another_format_is_another_job(embed, table, tmp_path):
    embed("in.parquet", output_format="npy")
    with pytest.raises(InputError, match="output_format was 'npy' and is now 'jsonl'"):
        embed("in.parquet", output_format="jsonl")
    embed("in.parquet", output_format="jsonl", restart=True)
    assert [path.name for path in (tmp_path / "out").rglob("part-*")] == ["part-00000000.jsonl"]


def test_unknown_formats(embed, table):
    with pytest.raises(
        InputError, match="output_format is 'csv': expected one of parquet, jsonl, npy, lance"
    ):
        embed("in.parquet", output_format="csv")


def test_lance_missing(embed, table, monkeypatch):
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(MissingDependencyError, match=r"\.\[lance\]"):
        embed("in.parquet", output_format="lance")


@pytest.fixture(params=DTYPES)
def written(request, embed, allowed, tmp_path):
    """Return the folder of a parquet output, and its vectors as an array."""
    table = MORE.drop_columns(["when"])  # Spark has no nanoseconds
    pq.write_table(table, tmp_path / "in.parquet")
    options = {"shard_rows": SHARD_ROWS, "output_dtype": request.param, "dim": 16}
    embed("in.parquet", artifact=allowed, **options)
    out = output_of(tmp_path / "out")
    vectors = np.array(out.column("embedding").to_pylist(), DTYPES[request.param])
    assert out.schema.field("embedding").type == pa.list_(
        pa.from_numpy_dtype(vectors.dtype), vectors.shape[1]
    )
    return tmp_path / "out", vectors


def assert_same(found, written):
    np.testing.assert_array_equal(np.array(found, written.dtype), written)


def test_duckdb_reads_parquet(written):
    """DuckDB ignores Arrow's schema, so a vector is a list until it is cast."""
    duckdb = pytest.importorskip("duckdb")
    folder, vectors = written
    kind = {"float32": "FLOAT", "float16": "FLOAT", "int8": "TINYINT", "uint8": "UTINYINT"}[
        vectors.dtype.name
    ]
    found = duckdb.sql(
        f"SELECT id, embedding::{kind}[{vectors.shape[1]}] AS embedding FROM '{folder}/*.parquet' ORDER BY id"
    )
    assert str(found.types[1]) == f"{kind}[{vectors.shape[1]}]"
    assert_same([row[1] for row in found.fetchall()], vectors)


def test_polars_reads_parquet(written):
    polars = pytest.importorskip("polars")
    folder, vectors = written
    found = polars.read_parquet(folder / "*.parquet")
    assert found.schema["embedding"] == polars.Array(polars.Series(vectors[0]).dtype, vectors.shape[1])
    assert_same(found["embedding"].to_numpy(), vectors)


def test_pandas_reads_parquet(written):
    pandas = pytest.importorskip("pandas")
    folder, vectors = written
    found = pandas.read_parquet(folder)["embedding"]
    assert found[0].dtype == vectors.dtype
    assert_same(np.stack(found), vectors)


def test_lancedb_reads_parquet(written, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    import pyarrow.dataset

    folder, vectors = written
    reader = pyarrow.dataset.dataset(folder, format="parquet").scanner().to_reader()
    table = lancedb.connect(tmp_path / "db").create_table("pages", reader)
    found = table.to_arrow()
    assert found.schema.field("embedding").type == pa.list_(
        pa.from_numpy_dtype(vectors.dtype), vectors.shape[1]
    )
    assert_same(found.column("embedding").to_pylist(), vectors)


def test_lancedb_opens_lance(embed, table, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    require("lance")
    embed("in.parquet", "plain")
    embed("in.parquet", output_format="lance", shard_rows=SHARD_ROWS)
    vectors = np.array(output_of(tmp_path / "plain").column("embedding").to_pylist(), np.float32)
    pages = lancedb.connect(tmp_path / "out").open_table("embeddings")
    assert pages.count_rows() == ROWS - 1
    hits = pages.search(vectors[5], vector_column_name="embedding").metric("dot").limit(3).to_list()
    assert vectors[5] @ vectors[hits[0]["id"] - (hits[0]["id"] > 11)] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*__warn_on_fork:pytest.PytestUnraisableExceptionWarning")  # Lance
def test_spark_reads_parquet(written, monkeypatch):
    """Spark has no type for vectors, and rejects half precision."""
    sql = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None:
        pytest.skip("no Java on the PATH")
    folder, vectors = written
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    spark = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    if vectors.dtype == np.float16:
        with pytest.raises(Exception, match="FLOAT16"):
            spark.read.parquet(str(folder))
        return
    frame = spark.read.parquet(str(folder)).orderBy("id")
    kind = {"float32": "float", "int8": "tinyint", "uint8": "smallint"}[vectors.dtype.name]
    assert dict(frame.dtypes)["embedding"] == f"array<{kind}>"
    assert_same([row["embedding"] for row in frame.collect()], vectors)
