"""Inputs, processes and outputs for the tests of koe5-onnx bulk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

import koe5_onnx

ARTIFACT = Path(__file__).resolve().parent / "data" / "tiny-int8"


def jsonl(*objects: object) -> bytes:
    return b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in objects)


def output_of(folder: Path) -> pa.Table:
    """Read all shards as one table, without koe5-onnx."""
    return pyarrow.dataset.dataset(folder, format="parquet").to_table()


def rows_of_shards(folder: Path) -> list[int]:
    return [pq.read_metadata(path).num_rows for path in sorted(folder.glob("part-*.parquet"))]


def errors_of(folder: Path) -> list[dict]:
    lines = (folder / "_errors.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def reasons_of(folder: Path) -> list[tuple[int, int | None, str]]:
    return [(row["row"], row["line"], row["reason"]) for row in errors_of(folder)]


def command(*arguments: str | Path) -> list[str]:
    """Return the command line of `koe5-onnx bulk`, with the tiny artifact and the usual options."""
    usual = ["--artifact", ARTIFACT, "--prompt-name", "passage", "--threads", "1"]
    return [sys.executable, "-m", "koe5_onnx.cli", "bulk", *map(str, [*arguments, *usual])]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start the command in a separate process that can import koe5_onnx."""
    source = str(Path(koe5_onnx.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    return subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True, env=environment)


def run_to_end(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    process = start(*arguments)
    _, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, "", errors)
