"""Jobs with inputs and outputs in remote stores write the same rows and files as on the local disk.

The tests use servers on the loopback interface: moto for S3, gcp-storage-emulator for Google Cloud Storage,
and hub_server.py for the Hub. Tests are skipped if a server or a driver is not installed; `make remote`
installs them.
"""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from bulk_output import ARTIFACT, jsonl, output_of, run_to_end, start
from hub_server import serving, settings

import koe5_onnx
from koe5_onnx import EngineOptions, InputError, cli, stores
from koe5_onnx.bulk import BulkOptions, embed_files, shards
from koe5_onnx.stores import locate

ROWS, SHARD_ROWS, KILLS = 900, 4, 10
USUAL = ["--artifact", str(ARTIFACT), "--prompt-name", "passage", "--threads", "1"]


def run(source, output, options=None, **more):
    options = {"prompt_name": "passage", "shard_rows": 2, **(options or {})}
    return embed_files(
        source, output, ARTIFACT, BulkOptions(**options), engine=EngineOptions(threads=1), **more
    )


@pytest.fixture
def memory():
    """Return fsspec's file system in memory, which has no files yet."""
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/", recursive=True)


def contents(fs, folder):
    """Return the content of each output file by name, without the job file and the lock, which may differ."""
    start = len(folder.rstrip("/")) + 1
    files = {path[start:]: fs.cat_file(path) for path in fs.find(folder)}
    return {name: content for name, content in files.items() if name not in ("_job.json", "_lock")}


TABLE = pa.table({"text": [f"글 {row}" if row % 5 else None for row in range(11)], "id": range(11)})


def write_inputs(fs, folder):
    """Write the same rows in several formats."""
    lines = jsonl(*TABLE.to_pylist())
    fs.pipe_file(f"{folder}/jsonl/a.jsonl", lines)
    fs.pipe_file(f"{folder}/gz/lang=ko/a.jsonl.gz", pa.compress(lines, "gzip", asbytes=True))
    fs.pipe_file(f"{folder}/gz/_hidden/b.jsonl", b"not read")
    fs.pipe_file(f"{folder}/csv/a.csv", b"text,id\r\n" + b"".join(b"%d,%d\r\n" % (n, n) for n in range(9)))
    stream = io.BytesIO()
    pq.write_table(TABLE, stream, row_group_size=4)
    fs.pipe_file(f"{folder}/parquet/x.parquet", stream.getvalue())
    fs.pipe_file(f"{folder}/parquet/y.parquet", stream.getvalue())
    stream = io.BytesIO()
    pyarrow.feather.write_feather(TABLE, stream, compression="zstd", chunksize=4)
    fs.pipe_file(f"{folder}/feather/a.feather", stream.getvalue())


@pytest.mark.parametrize("kind", ["jsonl", "gz", "csv", "parquet", "feather"])
def test_the_same_files_as_locally(memory, tmp_path, kind):
    write_inputs(memory, "/data")
    for name in memory.find(f"/data/{kind}"):
        (tmp_path / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name[1:]).write_bytes(memory.cat_file(name))
    local = run(tmp_path / "data" / kind, tmp_path / "out")
    remote = run(f"memory:///data/{kind}", "memory:///bucket/out")
    assert (remote.rows, remote.bad_rows, remote.tokens) == (local.rows, local.bad_rows, local.tokens)
    expected = contents(fsspec.filesystem("file"), str(tmp_path / "out"))
    assert contents(memory, "/bucket/out") == expected
    assert any(name.startswith("part-") for name in expected)


@pytest.mark.parametrize("output_format", ["jsonl", "npy"])
def test_other_output_formats(memory, tmp_path, output_format):
    memory.pipe_file("/in.jsonl", jsonl(*TABLE.to_pylist()))
    (tmp_path / "in.jsonl").write_bytes(memory.cat_file("/in.jsonl"))
    run(tmp_path / "in.jsonl", tmp_path / "out", {"output_format": output_format})
    run("memory:///in.jsonl", "memory:///out", {"output_format": output_format})
    assert contents(memory, "/out") == contents(fsspec.filesystem("file"), str(tmp_path / "out"))


def test_file_urls(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(jsonl({"text": "a"}))
    assert run(f"file://{tmp_path}/in.jsonl", f"file://{tmp_path}/out").rows == 1
    assert run(tmp_path / "in.jsonl", tmp_path / "out").shards_before == 1


@pytest.fixture
def done(memory):
    """Return the files of a finished job of three shards."""
    memory.pipe_file("/in.jsonl", jsonl(*({"text": f"글 {row}" if row != 3 else None} for row in range(6))))
    run("memory:///in.jsonl", "memory:///out")
    return contents(memory, "/out")


@pytest.mark.parametrize(
    ("lost", "left"),
    [
        ("part-00000001.parquet", 2),
        ("_progress/00000001*", 2),
        ("_plan.json", 3),
        ("_errors.jsonl", 3),
        ("_SUCCESS", 3),
    ],
)
def test_missing_files_are_made_again(memory, done, lost, left):
    (path,) = memory.glob(f"/out/{lost}")
    memory.rm_file(path)
    assert run("memory:///in.jsonl", "memory:///out").shards_before == left
    assert contents(memory, "/out") == done


def test_resume_reads_one_listing(memory, done, monkeypatch):
    """A resumed job lists the output once, and reads no receipts except those of shards with bad rows."""
    calls = []

    def count(name):
        method = getattr(type(memory), name)

        def counted(self, path, *args, **kwargs):
            calls.append((name, path))
            return method(self, path, *args, **kwargs)

        monkeypatch.setattr(type(memory), name, counted)

    memory.rm_file("/out/_SUCCESS")
    for name in ("info", "cat_file", "find", "exists", "open"):
        count(name)
    run("memory:///in.jsonl", "memory:///out")
    assert [path for name, path in calls if name == "find"] == ["/out"]
    assert not [path for _, path in calls if "part-" in path]
    # Only the second receipt has a bad row.
    assert {path[:20] for _, path in calls if "_progress" in path} == {"/out/_progress/00000"[:20]}
    assert {path.partition("_progress/")[2][:8] for _, path in calls if "_progress" in path} == {"00000001"}


def test_a_changed_input(memory, done):
    memory.pipe_file("/in.jsonl", jsonl(*({"text": f"글 {row}"} for row in range(6))))
    with pytest.raises(
        InputError, match=r"memory:///out belongs to a different job: the input file in.jsonl"
    ):
        run("memory:///in.jsonl", "memory:///out")
    assert run("memory:///in.jsonl", "memory:///out", restart=True).rows == 6


def test_restart_keeps_other_files(memory, done):
    memory.pipe_file("/out/README", b"mine")
    run("memory:///in.jsonl", "memory:///out", {"shard_rows": 6}, restart=True)
    names = contents(memory, "/out")
    assert names["README"] == b"mine"
    assert [name for name in names if name.startswith("part-")] == ["part-00000000.parquet"]
    assert len([name for name in names if name.startswith("_progress/")]) == 1


def test_input_that_changes_while_it_is_read(memory, monkeypatch):
    memory.pipe_file("/in.jsonl", jsonl({"text": "a"}, {"text": "b"}))
    sign = shards.OutputFolder.sign

    def change_then_sign(self, *receipt):
        memory.pipe_file("/in.jsonl", jsonl({"text": "c"}, {"text": "d"}))
        sign(self, *receipt)

    monkeypatch.setattr(shards.OutputFolder, "sign", change_then_sign)
    with pytest.raises(InputError, match=r"memory:///in.jsonl has changed since the job started"):
        run("memory:///in.jsonl", "memory:///out")
    assert not memory.exists("/out/_SUCCESS")


def test_a_different_job_that_starts_at_the_same_time(memory, monkeypatch):
    """Another process creates its job file after this one has found none."""
    memory.pipe_file("/in.jsonl", jsonl({"text": "a"}))
    run("memory:///in.jsonl", "memory:///other", {"shard_rows": 7})
    write_json = shards.OutputFolder.write_json

    def late(self, name, data, *, new=False):
        if name == "_job.json":
            memory.pipe_file("/out/_job.json", memory.cat_file("/other/_job.json"))
        write_json(self, name, data, new=new)

    monkeypatch.setattr(shards.OutputFolder, "write_json", late)
    with pytest.raises(InputError, match="belongs to a different job: shard_rows was 7 and is now 2"):
        run("memory:///in.jsonl", "memory:///out")
    assert memory.cat_file("/out/_job.json") == memory.cat_file("/other/_job.json")
    assert run("memory:///in.jsonl", "memory:///out", {"shard_rows": 7}).rows == 1


@pytest.mark.parametrize(
    ("source", "output", "options", "message"),
    [
        ("memory:///absent", "memory:///out", {}, "the input memory:///absent does not exist"),
        ("memory:///in", "memory:///in/out", {}, "the output memory:///in/out is in the input memory:///in"),
        ("memory:///in", "memory:///in", {}, "the output memory:///in is in the input memory:///in"),
        ("memory:///in", "memory:///taken", {}, "memory:///taken has the file 'mine.txt' but no job"),
        ("memory:///in", "memory:///taken/mine.txt", {}, "the output memory:///taken/mine.txt is a file"),
        ("memory:///taken", "memory:///out", {}, "the input memory:///taken has no input files"),
        ("nowhere://in", "memory:///out", {}, "the URL nowhere://in is invalid .*nowhere"),
    ],
)
def test_unusable_locations(memory, source, output, options, message):
    memory.pipe_file("/in/a.jsonl", jsonl({"text": "a"}))
    memory.pipe_file("/taken/mine.txt", b"mine")
    with pytest.raises(InputError, match=message):
        run(source, output, options)
    assert memory.find("/") == ["/in/a.jsonl", "/taken/mine.txt"]


def test_lance_requires_a_local_folder(memory, monkeypatch):
    memory.pipe_file("/in.jsonl", jsonl({"text": "a"}))
    monkeypatch.setattr("koe5_onnx.bulk.job.require_format", lambda _name: None)
    with pytest.raises(
        InputError, match="memory:///out is remote, but the output format lance requires a local"
    ):
        run("memory:///in.jsonl", "memory:///out", {"output_format": "lance"})


def test_a_url_as_a_path(tmp_path):
    with pytest.raises(InputError, match=r"s3:/bucket/x is a s3:// URL as a Path. Pass it as a string"):
        locate(tmp_path.joinpath("s3://bucket/x").relative_to(tmp_path))


def with_missing(package, code):
    """Run code in a process in which a package cannot be imported, and return the last line of stderr."""
    source = str(Path(koe5_onnx.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules[{package!r}] = None\n{code}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("s3://bucket/x", "s3fs"),
        ("gs://bucket/x", "gcsfs"),
        ("abfs://container/x", "adlfs"),
        ("https://host/x", "aiohttp"),
        ("hf://datasets/owner/name", "huggingface_hub"),
    ],
)
def test_a_missing_driver_is_named(url, driver):
    line = with_missing(driver, f"from koe5_onnx import stores; stores.locate({url!r})")
    message = f"{url} requires the package {driver}. Run pip install {driver}"
    assert line == f"koe5_onnx.errors.MissingDependencyError: {message}"


@pytest.mark.parametrize("arguments", [["s3://bucket/in", "out"], [__file__, "s3://bucket/in"]])
def test_the_command_names_a_missing_driver(arguments):
    code = f"from koe5_onnx import cli; sys.exit(cli.main({['bulk', *arguments, *USUAL]}))"
    expected = "koe5-onnx: error: s3://bucket/in requires the package s3fs. Run pip install s3fs"
    assert with_missing("s3fs", code) == expected


class FailingDriver(fsspec.AbstractFileSystem):
    """A driver that raises the errors of its own library."""

    protocol = "failing"

    def info(self, path, **_options):
        raise LookupError("no credentials")


def test_errors_of_a_driver_have_the_url(tmp_path, capsys):
    fsspec.register_implementation("failing", FailingDriver, clobber=True)
    assert cli.main(["bulk", "failing://in.jsonl", str(tmp_path / "out"), *USUAL]) == 1
    assert capsys.readouterr().err == "koe5-onnx: error: failing://in.jsonl: no credentials\n"


def test_embed_reads_urls(memory, tmp_path, capsys):
    memory.pipe_file("/in.jsonl", jsonl({"body": "하나"}, {"body": "둘"}))
    (tmp_path / "in.txt").write_text("하나\n둘\n", encoding="utf-8")
    first, second = ["--output", str(tmp_path / "a.npy")], ["--output", str(tmp_path / "b.npy")]
    assert cli.main(["embed", "memory:///in.jsonl", "--text-column", "body", *first, *USUAL]) == 0
    assert cli.main(["embed", str(tmp_path / "in.txt"), *second, *USUAL]) == 0
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert cli.main(["embed", "memory:///absent.txt", *first, *USUAL]) == 1
    assert "memory:///absent.txt: " in capsys.readouterr().err


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, optionally in ranges."""

    ranges = True

    def log_message(self, *_args):
        pass

    def end_headers(self):
        self.send_header("ETag", '"1"')
        super().end_headers()

    def do_GET(self):
        wanted = self.headers.get("Range")
        if not self.ranges or wanted is None:
            super().do_GET()
            return
        with open(self.translate_path(self.path), "rb") as file:  # noqa: PTH123
            content = file.read()
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


def test_http_is_read_only(memory):
    pytest.importorskip("aiohttp")
    memory.pipe_file("/in/a.jsonl", jsonl({"text": "a"}))
    with pytest.raises(InputError, match="the output https://host/out is read-only"):
        run("memory:///in", "https://host/out")


@pytest.fixture
def web(tmp_path):
    """Serve tmp_path/web and return its URL."""
    pytest.importorskip("aiohttp")
    (tmp_path / "web").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["in.parquet", "in.jsonl", "in.jsonl.gz", "in.feather"])
def test_http_input(web, tmp_path, monkeypatch, name):
    monkeypatch.setattr(stores, "_BLOCK_BYTES", 128)
    write_inputs(fsspec.filesystem("file", auto_mkdir=True), str(tmp_path / "data"))
    folder = {"parquet": "parquet/x", "jsonl": "jsonl/a", "gz": "gz/lang=ko/a", "feather": "feather/a"}
    source = f"{folder[name.rpartition('.')[2]]}.{name.partition('.')[2]}"
    (tmp_path / "web" / name).write_bytes((tmp_path / "data" / source).read_bytes())
    summary = run(f"{web}/{name}?signature=a/b", tmp_path / "out")
    assert (summary.rows, summary.bad_rows) == (8, 3)
    assert pq.read_table(tmp_path / "out/part-00000005.parquet").column("id").to_pylist() == []
    # A URL with another signature is the same file.
    assert run(f"{web}/{name}?signature=c", tmp_path / "out").shards_before == 6


def test_http_without_ranges(web, tmp_path, monkeypatch, capsys):
    (tmp_path / "web/in.jsonl").write_bytes(jsonl(*({"text": f"글 {row}"} for row in range(9))))
    monkeypatch.setattr(Handler, "ranges", False)
    assert run(f"{web}/in.jsonl", tmp_path / "small").rows == 9
    monkeypatch.setattr(stores, "_BLOCK_BYTES", 64)
    assert cli.main(["bulk", f"{web}/in.jsonl", str(tmp_path / "out"), *USUAL]) == 1
    assert "in.jsonl: The HTTP server doesn't appear to support range requests" in capsys.readouterr().err
    assert cli.main(["bulk", f"{web}/absent.jsonl", str(tmp_path / "out"), *USUAL]) == 1
    assert "absent.jsonl does not exist" in capsys.readouterr().err


def test_hub_input(tmp_path, monkeypatch):
    """The jobs run in new processes, because huggingface_hub reads HF_ENDPOINT when it is imported."""
    lines = jsonl(*TABLE.to_pylist())
    files = {"data/a.jsonl": lines, "data/sub/b.jsonl": lines, "other.jsonl": lines}
    arguments = ["hf://datasets/owner/pages/data", tmp_path / "out", "--shard-rows", "4"]
    with serving(files, "owner/pages") as hub:
        for name, value in settings(hub.endpoint, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        first, second = run_to_end(*arguments), run_to_end(*arguments)
    assert first.returncode == 0, first.stderr
    assert "16 rows in 6 shards, 6 of them by earlier runs" in second.stderr
    assert output_of(tmp_path / "out").column("id").to_pylist() == [row for row in range(11) if row % 5] * 2


@pytest.fixture(scope="module")
def gs():
    """Start an emulator of Google Cloud Storage for this process, with a bucket; return its file system."""
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        port = server._api._httpd.server_address[1]
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        yield fsspec.filesystem("gs")
    server.stop()


@pytest.mark.filterwarnings("default")
def test_google_cloud_storage(gs, tmp_path):
    write_inputs(gs, "bucket/data")
    for kind in ("jsonl", "parquet"):
        gs.get(f"bucket/data/{kind}", str(tmp_path / kind), recursive=True)
        summary = run(f"gs://bucket/data/{kind}", f"gs://bucket/{kind}-out")
        assert summary.rows == run(tmp_path / kind, tmp_path / f"{kind}-out").rows
        local = contents(fsspec.filesystem("file"), str(tmp_path / f"{kind}-out"))
        assert contents(gs, f"bucket/{kind}-out") == local
        gs.rm_file(f"bucket/{kind}-out/part-00000001.parquet")
        resumed = run(f"gs://bucket/data/{kind}", f"gs://bucket/{kind}-out")
        assert resumed.shards_before == summary.shards - 1
        assert contents(gs, f"bucket/{kind}-out") == local
        assert run(f"gs://bucket/data/{kind}", f"gs://bucket/{kind}-out", restart=True).shards_before == 0


@pytest.fixture(scope="module")
def s3():
    """Start moto's S3 server for this process and the processes that it starts; return a client."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    import boto3

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client
        client.close()
    server.stop()


def objects(s3, prefix):
    """Return the objects below a prefix, without s3fs."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{prefix}/")
    keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
    return {
        key.removeprefix(f"{prefix}/"): s3.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys
    }


def count_parts(s3, prefix):
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{prefix}/part-")
    return sum(page["KeyCount"] for page in pages)


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_kill_9_on_s3(s3, tmp_path):
    rng = random.Random(0)
    rows = [
        {"id": row, "text": None if row % 97 == 5 else f"문장 {row} " * rng.randint(1, 5)}
        for row in range(ROWS)
    ]
    for name, part in (("a", rows[:500]), ("b", rows[500:])):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{name}.jsonl").write_bytes(jsonl(*part))
        s3.put_object(Bucket="bucket", Key=f"in/{name}.jsonl", Body=jsonl(*part))
    arguments = ["s3://bucket/in", "s3://bucket/out", "--shard-rows", str(SHARD_ROWS)]
    killed = 0
    while killed < KILLS:
        before = count_parts(s3, "out")
        process = start(*arguments)
        # Every third kill waits for no shard, and usually happens during startup.
        enough = before + (0 if killed % 3 == 2 else rng.randint(1, ROWS // SHARD_ROWS // KILLS // 2))
        while count_parts(s3, "out") < enough and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1 if enough == before else 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the job was done before it could be killed"
        killed += 1
        for name, content in objects(s3, "out").items():
            if name.startswith("part-"):
                assert pq.read_metadata(io.BytesIO(content)).num_rows > 0, "a partial file is visible"
    finished = count_parts(s3, "out")
    assert 0 < finished < ROWS // SHARD_ROWS
    process = start(*arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "of them by earlier runs" in errors
    assert run(tmp_path / "in", tmp_path / "calm", {"shard_rows": SHARD_ROWS}).rows == ROWS - 10
    found = objects(s3, "out")
    assert found.pop("_job.json")
    assert found == contents(fsspec.filesystem("file"), str(tmp_path / "calm"))


@pytest.mark.filterwarnings("default")
def test_formats_on_s3(s3, tmp_path):
    fs = fsspec.filesystem("s3")
    write_inputs(fs, "bucket/data")
    for kind in ("jsonl", "gz", "parquet", "feather"):
        summary = run(f"s3://bucket/data/{kind}", f"s3://bucket/{kind}-out")
        assert (summary.rows, summary.bad_rows) == ((16, 6) if kind == "parquet" else (8, 3))
        assert run(f"s3://bucket/data/{kind}", f"s3://bucket/{kind}-out").shards_before == summary.shards
        assert run(f"s3://bucket/data/{kind}", f"s3://bucket/{kind}-out", restart=True).shards_before == 0


@pytest.mark.filterwarnings("default")
def test_only_one_of_two_jobs_creates_the_job_file(s3):
    folder = shards.OutputFolder(locate("s3://bucket/created"), "parquet")
    folder.write_json("_job.json", {"first": 1}, new=True)
    with pytest.raises(FileExistsError):
        folder.write_json("_job.json", {"second": 2}, new=True)
    assert folder.read_json("_job.json") == {"first": 1}


@pytest.mark.filterwarnings("default")
def test_large_files_are_published_at_once(s3):
    """A file above the size of a multipart upload's parts is visible only when it is complete."""
    content = os.urandom(110 << 20)
    with locate("s3://bucket/large").writing() as temporary:
        temporary.write_bytes(content)
        assert locate("s3://bucket/large").entry() is None
    assert s3.get_object(Bucket="bucket", Key="large")["Body"].read() == content
    assert s3.head_object(Bucket="bucket", Key="large")["ETag"].rstrip('"').endswith("-3")


@pytest.mark.filterwarnings("default")
def test_a_bucket_that_does_not_exist(s3, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_bytes(jsonl({"text": "a"}))
    assert cli.main(["bulk", str(tmp_path / "in.jsonl"), "s3://absent/out", *USUAL]) == 1
    assert capsys.readouterr().err.startswith("koe5-onnx: error: s3://absent/out")
