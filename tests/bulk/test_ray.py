"""The Ray engine on a local cluster of two nodes writes the same files as the local engine, byte for byte.

Skipped if Ray is not installed; `make ray` installs it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_output import errors_of, jsonl, output_of, run_to_end, start

from koe5_onnx import InputError
from koe5_onnx.bulk import RayOptions
from koe5_onnx.bulk.ray_engine import _import_ray

pytest.importorskip("ray")

# Warnings of Ray itself, which the driver of a local cluster emits.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROWS, SHARD_ROWS = 300, 16
TWO = RayOptions(actors=2)


@pytest.fixture(scope="module")
def cluster():
    """Start a local cluster of two nodes with one CPU each, so that each node runs one actor."""
    ray = _import_ray()
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture
def corpus(put):
    rng = random.Random(0)
    return put(
        "in.jsonl",
        jsonl(
            *(
                {"id": row, "text": None if row % 41 == 7 else f"문장 {row} " * rng.randint(1, 40)}
                for row in range(ROWS)
            )
        ),
    )


def assert_the_same(one, other):
    names = sorted(path.name for path in one.glob("[!_]*"))
    assert names == sorted(path.name for path in other.glob("[!_]*"))
    assert output_of(one).equals(output_of(other))
    for name in [*names, "_errors.jsonl", "_SUCCESS", "_plan.json", "_job.json"]:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_ray_and_local_shorten_alike(cluster, embed, corpus, allowed, tmp_path):
    options = {"artifact": allowed, "dim": 8, "shard_rows": 100}
    embed("in.jsonl", "local", **options)
    embed("in.jsonl", "ray", ray=TWO, threads=None, **options)
    assert_the_same(tmp_path / "local", tmp_path / "ray")


def test_ray_and_local_make_the_same(cluster, embed, embedder, corpus, tmp_path):
    here = embed("in.jsonl", "local", shard_rows=SHARD_ROWS)
    there = embed("in.jsonl", "ray", shard_rows=SHARD_ROWS, ray=TWO, threads=None)
    assert_the_same(tmp_path / "local", tmp_path / "ray")
    assert (here.rows, here.bad_rows, here.tokens) == (there.rows, there.bad_rows, there.tokens)
    table = output_of(tmp_path / "ray")
    expected = embedder.encode_passages(table.column("text").to_pylist())
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist(), np.float32), expected)
    assert [row["row"] for row in errors_of(tmp_path / "ray")] == [
        row for row in range(ROWS) if row % 41 == 7
    ]


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_parquet_and_other_dtypes(cluster, embed, tmp_path, dtype):
    rows = {"text": [f"문장 {row} " * (row % 7) for row in range(200)], "id": list(range(200))}
    pq.write_table(pa.table(rows), tmp_path / "in.parquet", row_group_size=90)
    options = {"shard_rows": 30, "output_dtype": dtype}
    embed("in.parquet", "local", **options)
    embed("in.parquet", "ray", ray=TWO, **options)
    assert_the_same(tmp_path / "local", tmp_path / "ray")


def test_real_pages(cluster, embed, tmp_path, autorag):
    (tmp_path / "in.parquet").write_bytes(autorag.read_bytes())
    for output, ray in (("local", None), ("ray", TWO)):
        embed("in.parquet", output, text_column="contents", shard_rows=100, ray=ray)
    assert_the_same(tmp_path / "local", tmp_path / "ray")


@pytest.mark.parametrize("first", ["local", "ray"])
def test_a_job_continues_with_the_other_engine(cluster, embed, corpus, tmp_path, first):
    embed("in.jsonl", "calm", shard_rows=SHARD_ROWS)
    engines = {"local": None, "ray": TWO}
    embed("in.jsonl", shard_rows=SHARD_ROWS, ray=engines.pop(first))
    for shard in (0, 3, 4, 11):
        (tmp_path / f"out/part-{shard:08d}.parquet").unlink()
    (other,) = engines.values()
    summary = embed("in.jsonl", shard_rows=SHARD_ROWS, ray=other)
    assert (summary.shards, summary.shards_before) == (19, 15)
    assert_the_same(tmp_path / "out", tmp_path / "calm")


def test_strict_and_errors_of_actors_come_back_as_they_are(cluster, embed, corpus, tmp_path):
    with pytest.raises(InputError, match=r"^in.jsonl, line \d+: expected text, found null. Fix the row"):
        embed("in.jsonl", shard_rows=SHARD_ROWS, strict=True, ray=TWO)
    assert not (tmp_path / "out/_SUCCESS").exists()
    assert embed("in.jsonl", shard_rows=SHARD_ROWS, ray=TWO).bad_rows == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RayOptions(actors=0), "the number of Ray actors is 0"),
        (RayOptions(cpus_per_actor=-1), "has -1 CPUs and 0 GPUs: expected 0 or more"),
        (RayOptions(gpus_per_actor=1), "the device is 'cpu' and a Ray actor has 1 GPUs"),
    ],
)
def test_options_out_of_range(embed, corpus, options, message):
    with pytest.raises(InputError, match=message):
        embed("in.jsonl", ray=options)


def test_no_usage_data_is_sent(cluster):
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="a local cluster ends with its driver only on Linux")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver(embed, corpus, tmp_path, how):
    """If the driver is killed, the whole cluster ends, and the local engine can resume the job."""
    arguments = [corpus, tmp_path / "out", "--shard-rows", "2", "--engine", "ray", "--ray-actors", "2"]
    process = start(*arguments)
    while not list((tmp_path / "out").glob("part-*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(how)
    process.communicate()
    assert process.returncode == (-9 if how == signal.SIGKILL else 143)
    assert not (tmp_path / "out/_SUCCESS").exists()
    done = run_to_end(*arguments[:4])
    assert done.returncode == 0, done.stderr
    assert "of them by earlier runs" in done.stderr
    embed("in.jsonl", "calm", shard_rows=2)
    assert_the_same(tmp_path / "out", tmp_path / "calm")


def test_the_command(corpus, tmp_path):
    done = run_to_end(
        corpus, tmp_path / "out", "--engine", "ray", "--ray-actors", "2", "--ray-cpus-per-actor", "1"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("292 rows in 1 shard, 8 bad rows")
