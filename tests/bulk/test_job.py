"""An output folder belongs to one job. Other options, changed input and a second process are rejected."""

from __future__ import annotations

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_output import ARTIFACT, jsonl, output_of, run_to_end, start
from edited_json import edited

from koe5_onnx import ArtifactError, EngineOptions, InputError
from koe5_onnx.bulk import BulkOptions, embed_files
from koe5_onnx.bulk import embed as embed_module
from koe5_onnx.bulk.shards import OutputFolder
from koe5_onnx.stores import locate


@pytest.fixture
def begun(embed, tmp_path, put):
    put("in/a.jsonl", jsonl({"text": "가", "body": "나"}))
    put("in/b.jsonl", jsonl({"text": "다", "body": "라"}))
    embed("in")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_name": "query"}, "prompt_name was 'passage' and is now 'query'"),
        ({"prompt_name": None}, "prompt_name was 'passage' and is now None"),
        ({"prompt_name": None, "prompt": ""}, "and is now None; prompt was None and is now ''"),
        ({"text_column": "body"}, "text_column was 'text' and is now 'body'"),
        ({"embedding_column": "v"}, "embedding_column was 'embedding' and is now 'v'"),
        ({"output_dtype": "int8"}, "output_dtype was 'float32' and is now 'int8'"),
        (
            {"shard_rows": 7, "overflow": "error"},
            "shard_rows was 1024 and is now 7; overflow was 'truncate' and is now",
        ),
    ],
)
def test_other_arguments(embed, begun, change, message):
    before = output_of(begun)
    with pytest.raises(InputError, match=f"belongs to a different job: .*{message}.*--restart") as caught:
        embed("in", **change)
    assert "\n" not in str(caught.value)
    assert output_of(begun).equals(before)
    embed("in", restart=True, **change)
    assert json.loads((begun / "_job.json").read_text()).items() >= change.items()


def test_what_cannot_change_a_row_may_change(embed, begun):
    assert embed("in", threads=2, strict=True).shards_before == 1


def test_changed_input(embed, begun, tmp_path, put):
    put("in/a.jsonl", jsonl({"text": "다른", "body": "것"}))
    with pytest.raises(InputError, match=r"the input file a.jsonl has changed"):
        embed("in")
    put("in/c.jsonl", jsonl({"text": "하나 더"}))
    (tmp_path / "in/b.jsonl").unlink()
    with pytest.raises(InputError, match=r"the input file a.jsonl has changed and 2 more"):
        embed("in")
    assert embed("in", restart=True).rows == 2


def test_a_file_of_the_same_size_with_another_time(embed, begun, tmp_path):
    os.utime(tmp_path / "in/a.jsonl", ns=(0, 0))
    with pytest.raises(InputError, match=r"the input file a.jsonl has changed"):
        embed("in")


def test_a_moved_input_continues(embed, begun, tmp_path):
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    assert embed("elsewhere").shards_before == 1


def test_input_that_changes_while_it_is_read(embed, tmp_path, put, monkeypatch):
    put("in.jsonl", jsonl(*({"text": f"{row}"} for row in range(4))))
    sign = OutputFolder.sign

    def change_then_sign(self, *receipt):
        put("in.jsonl", jsonl(*({"text": f"other {row}"} for row in range(4))))
        sign(self, *receipt)

    monkeypatch.setattr(OutputFolder, "sign", change_then_sign)
    with pytest.raises(InputError, match=r"in.jsonl has changed since the job started"):
        embed("in.jsonl", shard_rows=2)
    assert not (tmp_path / "out/_SUCCESS").exists()


def test_another_artifact(begun, tmp_path):
    copy = shutil.copytree(ARTIFACT, tmp_path / "artifact")
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer, indent=3))
    with pytest.raises(ArtifactError):  # the manifest still has the old size and hash
        embed_files(tmp_path / "in", begun, copy, BulkOptions("passage"), engine=EngineOptions(threads=1))
    from koe5_onnx.artifact import describe_file

    file = describe_file(copy / "tokenizer.json")
    with edited(copy / "manifest.json") as manifest:
        manifest["files"]["tokenizer.json"] = {"bytes": file.bytes, "sha256": file.sha256}
    with pytest.raises(InputError, match="belongs to a different job: the artifact is different"):
        embed_files(tmp_path / "in", begun, copy, BulkOptions("passage"), engine=EngineOptions(threads=1))


def test_kernels_do_not_mix(begun, tmp_path):
    graph = json.loads((begun / "_job.json").read_text())["graph"]
    if graph == "padded":
        pytest.skip("the fused kernels cannot run here")
    padded = EngineOptions(threads=1, graph="padded")
    with pytest.raises(InputError, match="graph was 'packed' and is now 'padded'"):
        embed_files(tmp_path / "in", begun, ARTIFACT, BulkOptions("passage"), engine=padded)


def test_a_job_keeps_its_graph_after_tune(begun, tmp_path, monkeypatch):
    """What the graph "auto" is can change between two runs of the same command."""
    before = json.loads((begun / "_job.json").read_text())["graph"]
    other = "padded" if before == "packed" else "packed"
    monkeypatch.setattr(
        "koe5_onnx.bulk.embed.choose_tuned",
        lambda _artifact, options: SimpleNamespace(kind=other if options.graph == "auto" else options.graph),
    )
    source, options, engine = tmp_path / "in", BulkOptions("passage"), EngineOptions(threads=1)
    assert embed_files(source, begun, ARTIFACT, options, engine=engine).shards_before == 1
    assert json.loads((begun / "_job.json").read_text())["graph"] == before


@pytest.mark.parametrize("restart", [False, True])
def test_a_job_that_another_process_finishes_meanwhile(begun, tmp_path, monkeypatch, restart):
    """The folder is listed only after it is locked."""
    if restart:
        shutil.rmtree(begun)
    else:
        (begun / OutputFolder(locate(begun), "parquet").names(0)[0]).unlink()
    source, options, engine = tmp_path / "in", BulkOptions("passage"), EngineOptions(threads=1)
    job_of = embed_module._job

    def finished_meanwhile(*given):
        monkeypatch.setattr(embed_module, "_job", job_of)
        before = BulkOptions("query") if restart else options
        embed_files(source, begun, ARTIFACT, before, engine=engine)
        return job_of(*given)

    monkeypatch.setattr(embed_module, "_job", finished_meanwhile)
    summary = embed_files(source, begun, ARTIFACT, options, engine=engine, restart=restart)
    assert (summary.shards, summary.shards_before) == (1, 0 if restart else 1)


def test_two_at_once(embed, begun):
    with (
        OutputFolder(locate(begun), "parquet").locked(),
        pytest.raises(InputError, match=r"another process writes to .*out"),
    ):
        embed("in")


def test_two_processes_at_once(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(jsonl(*({"text": f"글 {row}"} for row in range(3000))))
    first = start(tmp_path / "in.jsonl", tmp_path / "out", "--shard-rows", "50")
    while not list((tmp_path / "out").glob("part-*")):
        assert first.poll() is None
    first.send_signal(signal.SIGSTOP)  # the stopped process keeps the lock
    second = run_to_end(tmp_path / "in.jsonl", tmp_path / "out", "--shard-rows", "50")
    first.send_signal(signal.SIGCONT)
    first.communicate()
    assert (second.returncode, first.returncode) == (1, 0)
    assert "another process writes to" in second.stderr
    assert len(output_of(tmp_path / "out")) == 3000


def test_unusable_folders_are_rejected(embed, tmp_path, put):
    put("in/a.jsonl", jsonl({"text": "x"}))
    put("taken/mine.txt", b"mine")
    put("file", b"")
    for output, message in (
        ("in/out", "is in the input"),
        ("taken", "has the file 'mine.txt'"),
        ("file", "is a file"),
    ):
        with pytest.raises(InputError, match=message):
            embed("in", output)
        with pytest.raises(InputError, match=message):
            embed("in", output, restart=True)
    assert (tmp_path / "taken/mine.txt").read_bytes() == b"mine"


def test_restart_keeps_what_is_not_the_jobs(embed, begun, put):
    put("out/README", b"mine")
    embed("in", restart=True, shard_rows=1)
    assert (begun / "README").read_bytes() == b"mine"
    assert len(list(begun.glob("part-*"))) == 2


def test_a_damaged_job_file(embed, begun):
    (begun / "_job.json").write_text("{")
    with pytest.raises(InputError, match=r"_job.json is not JSON .*--restart"):
        embed("in")
    assert embed("in", restart=True).rows == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_name": "document"}, "prompt_name is 'document': expected one of"),
        ({"shard_rows": 0}, "shard_rows is 0"),
        ({"output_dtype": "int4"}, "output_dtype is 'int4': expected one of float32"),
        ({"overflow": "drop"}, "overflow is 'drop'"),
    ],
)
def test_arguments_out_of_range(embed, tmp_path, put, options, message):
    put("in.jsonl", jsonl({"text": "x"}))
    with pytest.raises(InputError, match=message):
        embed("in.jsonl", **options)
    assert not (tmp_path / "out").exists()


def test_an_input_that_is_not_there(embed):
    with pytest.raises(InputError, match="absent does not exist"):
        embed("absent")


def test_parquet_by_another_name(embed, tmp_path):
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "in.pq")
    suffixes = (
        r".parquet, .arrow, .feather, .ipc, or .jsonl, .ndjson, .json, .csv, .tsv, also with .gz or .zst"
    )
    with pytest.raises(InputError, match=f"in.pq has an unknown suffix: expected {suffixes}"):
        embed("in.pq")
