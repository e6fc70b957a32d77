"""docs/examples/spark.py on a local Spark. Skipped if pyspark or Java is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import koe5_onnx
from koe5_onnx import Embedder

pytest.importorskip("pyspark")
pa = pytest.importorskip("pyarrow")
if shutil.which("java") is None:
    pytest.skip("no Java on the PATH", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs/examples/spark.py"
ARTIFACT = ROOT / "tests/data/tiny-int8"
ROWS = 3000


def test_the_example_embeds_a_table(tmp_path):
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    texts = [None if row == 7 else f"문장 {row} " * (row % 5) for row in range(ROWS)]
    pq.write_table(pa.table({"id": range(ROWS), "contents": texts}), tmp_path / "in.parquet")
    done = subprocess.run(
        [sys.executable, EXAMPLE, tmp_path / "in.parquet", tmp_path / "out", ARTIFACT, "contents"],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(koe5_onnx.__file__).resolve().parents[1]),
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "PYSPARK_SUBMIT_ARGS": "--master local[2] pyspark-shell",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = ds.dataset(tmp_path / "out").to_table().sort_by("id")
    assert table.column_names == ["id", "contents", "embedding"]
    assert table.column("id").to_pylist() == [row for row in range(ROWS) if row != 7]
    with Embedder.open(ARTIFACT, threads=1) as embedder:
        expected = embedder.encode_passages(table.column("contents").to_pylist())
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist(), np.float32), expected)
