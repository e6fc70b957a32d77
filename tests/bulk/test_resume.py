"""A job that is killed and resumed writes each row once, keeps finished shards, and writes the same bytes."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time

import pytest
from bulk_output import ARTIFACT, errors_of, jsonl, output_of, run_to_end, start
from edited_json import set_contract

from koe5_onnx import InputError
from koe5_onnx.bulk import OUTPUT_FORMATS, shards

SHARD_ROWS = 4
ROWS = 2000
KILLS = 10


def corpus(path):
    words = ["서울", "고래", "embedding", "한국어 문장", "수도는 어디인가요?", "e"]
    rng = random.Random(0)
    objects = [
        {"id": row, "text": None if row % 97 == 5 else " ".join(rng.choices(words, k=rng.randint(1, 12)))}
        for row in range(ROWS)
    ]
    path.write_bytes(jsonl(*objects))


def finished(folder):
    """Return the shards with a receipt, and the identity of their files."""
    progress = folder / shards.PROGRESS
    names = [path.name[:8] for path in progress.glob("[0-9]*.json")] if progress.is_dir() else []
    files = {path.stem.removeprefix("part-"): path for path in sorted(folder.rglob("part-*"))}
    files = {name: files[name] for name in names}
    return {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in files.items()}


def wait_for(folder, count, process):
    """Wait until this many shards are finished, or the process has ended."""
    while len(finished(folder)) < count and process.poll() is None:
        time.sleep(0.001)


def kill_and_go_on(arguments, folder, shard_count, kills, rng):
    """Kill the command `kills` times at random moments, then let it finish.

    If it finishes before it can be killed, as on a fast machine, delete its output and start again.
    """
    killed = turn = 0
    while killed < kills:
        turn += 1
        assert turn < 20 * kills, "the job is always done before it can be killed"
        before = finished(folder)
        # Every third attempt is a kill during startup. The others wait for a few more finished shards, so
        # that enough shards are left for the remaining kills.
        more = 0 if turn % 3 == 0 else rng.randint(1, max(1, shard_count // (kills + 1)))
        process = start(*arguments)
        wait_for(folder, len(before) + more, process)
        time.sleep(rng.uniform(0, 0.6 if more == 0 else 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        now = finished(folder)
        assert before.items() <= now.items(), "a finished shard was rewritten"
        if process.returncode == 0:
            shutil.rmtree(folder)
        else:
            killed += 1
    before = finished(folder)
    done = run_to_end(*arguments)
    assert done.returncode == 0, done.stderr
    assert before.items() <= finished(folder).items()


def assert_equal_jobs(folder, undisturbed):
    assert errors_of(folder) == errors_of(undisturbed)
    files, expected = (
        # Lance adds a UUID to the name of a transaction.
        {re.sub("-[0-9a-f-]{36}.txn", "", str(path.relative_to(top))): path for path in top.rglob("*")}
        for top in (folder, undisturbed)
    )
    assert sorted(files) == sorted(expected), "the folders have different files"
    for name in (name for name, path in expected.items() if path.stem.startswith("part-")):
        assert files[name].read_bytes() == expected[name].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_kill_9(tmp_path, output_format):
    if output_format == "lance":
        pytest.importorskip("lance")
    corpus(tmp_path / "in.jsonl")
    options = ["--shard-rows", str(SHARD_ROWS), "--output-format", output_format]
    arguments = [tmp_path / "in.jsonl", tmp_path / "out", *options]
    kill_and_go_on(arguments, tmp_path / "out", ROWS // SHARD_ROWS, KILLS, random.Random(0))
    assert run_to_end(arguments[0], tmp_path / "calm", *options).returncode == 0
    assert_equal_jobs(tmp_path / "out", tmp_path / "calm")
    if output_format != "parquet":
        return
    out = output_of(tmp_path / "calm")
    bad = [row["row"] for row in errors_of(tmp_path / "calm")]
    assert bad == [row for row in range(ROWS) if row % 97 == 5]
    assert out.column("id").to_pylist() == [row for row in range(ROWS) if row % 97 != 5]


@pytest.mark.slow
def test_kill_9_over_real_pages(tmp_path, autorag):
    arguments = [autorag, tmp_path / "out", "--text-column", "contents", "--shard-rows", "24"]
    kill_and_go_on(arguments, tmp_path / "out", 30, KILLS, random.Random(1))
    assert run_to_end(autorag, tmp_path / "calm", *arguments[2:]).returncode == 0
    assert_equal_jobs(tmp_path / "out", tmp_path / "calm")
    assert len(output_of(tmp_path / "out")) == 720


def test_sigterm_leaves_whole_shards_only(tmp_path):
    corpus(tmp_path / "in.jsonl")
    out = tmp_path / "out"
    process = start(tmp_path / "in.jsonl", out, "--shard-rows", "100")
    wait_for(out, 2, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert "Run the same command to resume" in errors
    assert len(list(out.glob("part-*.parquet"))) == len(finished(out)) < 20
    assert not list(out.rglob(".*"))
    assert not (out / "_SUCCESS").exists()
    assert run_to_end(tmp_path / "in.jsonl", out, "--shard-rows", "100").returncode == 0
    assert len(output_of(out)) + len(errors_of(out)) == ROWS


@pytest.fixture
def done(embed, tmp_path, put):
    """Return the output folder of a finished job of three shards. The folder "calm" is a copy of it."""
    put("in.jsonl", jsonl(*({"text": f"글 {row}" if row != 3 else None} for row in range(6))))
    embed("in.jsonl", shard_rows=2)
    shutil.copytree(tmp_path / "out", tmp_path / "calm")
    return tmp_path / "out"


def test_a_finished_job_has_nothing_to_do(embed, done, tmp_path):
    before = finished(done)
    summary = embed("in.jsonl", shard_rows=2)
    assert (summary.shards, summary.shards_before, summary.tokens - summary.tokens_before) == (3, 3, 0)
    assert finished(done) == before
    assert_equal_jobs(done, tmp_path / "calm")


@pytest.mark.parametrize(
    ("lost", "left"),
    [("part-00000001.parquet", 2), ("_progress/00000001*.json", 2), ("_errors.jsonl", 3), ("_SUCCESS", 3)],
)
def test_what_is_lost_is_made_again(embed, done, tmp_path, lost, left):
    (path,) = done.glob(lost)
    path.unlink()
    assert embed("in.jsonl", shard_rows=2).shards_before == left
    assert_equal_jobs(done, tmp_path / "calm")


def test_a_shard_of_another_size_is_made_again(embed, done, tmp_path):
    with (done / "part-00000000.parquet").open("ab") as stream:
        stream.write(b"x")
    assert embed("in.jsonl", shard_rows=2).shards_before == 2
    assert_equal_jobs(done, tmp_path / "calm")


def test_leftovers_of_a_kill_are_removed(embed, done, tmp_path):
    (done / ".part-00000001.parquet.00ff.partial").write_bytes(b"half")
    (done / "_progress/.00000001.json.00ff.partial").write_bytes(b"half")
    embed("in.jsonl", shard_rows=2)
    assert_equal_jobs(done, tmp_path / "calm")


def test_the_end_is_marked_last(embed, done, monkeypatch):
    """_SUCCESS is absent until everything is written, even if it existed before."""
    (done / "part-00000002.parquet").unlink()

    def full_disk(self, receipts):
        assert not (done / "_SUCCESS").exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.OutputFolder, "write_errors", full_disk)
    with pytest.raises(OSError, match="No space left"):
        embed("in.jsonl", shard_rows=2)
    assert not (done / "_SUCCESS").exists()


def test_an_artifact_with_another_contract_is_another_job(embed, tmp_path):
    """Two artifacts with different contracts may have the same files, and therefore the same hashes."""
    artifact = shutil.copytree(ARTIFACT, tmp_path / "artifact")
    (tmp_path / "in.jsonl").write_bytes(jsonl({"text": "가"}, {"text": "나"}))
    embed("in.jsonl", artifact=artifact)
    set_contract(artifact, matryoshka_dims=[8])
    with pytest.raises(InputError, match="belongs to a different job: contract was"):
        embed("in.jsonl", artifact=artifact)
