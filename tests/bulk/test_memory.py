"""Peak memory hardly grows with twenty times as many rows of parquet, JSON lines or CSV."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_output import ARTIFACT, output_of
from tolerances import BULK_MEMORY_RATIO

import koe5_onnx

pytestmark = pytest.mark.slow
TIMES = 20
ROWS = 400
PAYLOAD_BYTES = 20_000
"""Additional data per row: 8 MB in total, and 160 MB with twenty times as many rows."""

PEAK = """
import sys
from pathlib import Path
from koe5_onnx import EngineOptions
from koe5_onnx.bulk import BulkOptions, embed_files
source, output, artifact, shard_rows = sys.argv[1:]
options = BulkOptions("passage", shard_rows=int(shard_rows))
embed_files(source, output, artifact, options, engine=EngineOptions(threads=1))
# Not ru_maxrss, which a child inherits from the process that forked it.
print(next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM")))
"""


def rows(count):
    rng = random.Random(0)
    for row in range(count):
        yield {"text": f"문서 {row}", "id": row, "payload": rng.randbytes(PAYLOAD_BYTES // 2).hex()}


def write(path: Path, count: int) -> None:
    if path.suffix == ".parquet":
        # A single row group. A reader must hold a whole page, so make pages of about a megabyte, as other
        # writers do: pyarrow checks the page size only after each `write_batch_size` rows (default 1,024).
        table = pa.Table.from_pylist(list(rows(count)))
        pq.write_table(table, path, row_group_size=count, write_batch_size=32, compression="none")
        return
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with io.TextIOWrapper(pa.output_stream(path, compression=compression), encoding="utf-8") as stream:
        if ".csv" in path.name:
            stream.write("text,id,payload\n")
            stream.writelines(f'"{row["text"]}\n",{row["id"]},{row["payload"]}\n' for row in rows(count))
        else:
            stream.writelines(json.dumps(row) + "\n" for row in rows(count))


def peak(source: Path, output: Path, shard_rows: int) -> int:
    """Return the peak memory of a separate process, in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(source), str(output), str(ARTIFACT), str(shard_rows)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(koe5_onnx.__file__).resolve().parents[1]), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["in.parquet", "in.jsonl", "in.csv", "in.jsonl.gz", "in.jsonl.zst"])
def test_twenty_times_the_rows(tmp_path, name):
    write(tmp_path / f"small-{name}", ROWS)
    write(tmp_path / f"large-{name}", ROWS * TIMES)
    small = peak(tmp_path / f"small-{name}", tmp_path / "small", 200)
    large = peak(tmp_path / f"large-{name}", tmp_path / "large", 200)
    assert len(output_of(tmp_path / "large")) == ROWS * TIMES
    assert large <= small * BULK_MEMORY_RATIO, f"{large} KiB instead of {small}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_shard_of_any_size(tmp_path):
    """Memory depends on the size of a chunk and not on that of a shard, so one shard can have all rows."""
    write(tmp_path / "small.jsonl", ROWS * 4)
    write(tmp_path / "large.jsonl", ROWS * TIMES)
    small = peak(tmp_path / "small.jsonl", tmp_path / "small", ROWS * TIMES)
    large = peak(tmp_path / "large.jsonl", tmp_path / "large", ROWS * TIMES)
    assert len(list((tmp_path / "large").glob("part-*"))) == 1
    assert large <= small * BULK_MEMORY_RATIO, f"{large} KiB instead of {small}"
