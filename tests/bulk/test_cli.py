"""koe5-onnx bulk: arguments, summary line, progress bar, and errors if the extra `bulk` is not installed."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from bulk_output import ARTIFACT, errors_of, jsonl, output_of

import koe5_onnx
from koe5_onnx import Embedder, InputError, cli
from koe5_onnx.bulk import Progress, ray_engine
from koe5_onnx.bulk.worker import Worker
from koe5_onnx.cli import bulk


@pytest.fixture
def run(tmp_path, put):
    """Return a function that runs `koe5-onnx bulk` on in.jsonl with usual and additional arguments."""
    put("in.jsonl", jsonl(*({"contents": f"글 {row}", "text": f"{row}"} for row in range(5)), {"text": None}))

    def command(*more, prompt="passage"):
        usual = ["--artifact", str(ARTIFACT), "--threads", "1", "--prompt-name", prompt]
        return cli.main(["bulk", str(tmp_path / "in.jsonl"), str(tmp_path / "out"), *usual, *more])

    return command


def test_a_complete_run_and_a_second_one(run, tmp_path, capsys, embedder):
    assert run("--text-column", "contents", "--shard-rows", "2") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("5 rows in 3 shards, 1 bad row in _errors.jsonl, 0 truncated, ")
    assert line.endswith(f"tokens/s): {tmp_path / 'out'}")
    expected = embedder.encode_passages([f"글 {row}" for row in range(5)])
    assert output_of(tmp_path / "out").column("embedding").to_pylist() == expected.tolist()
    assert [row["reason"] for row in errors_of(tmp_path / "out")] == ["no column 'contents'"]
    assert run("--text-column", "contents", "--shard-rows", "2") == 0
    assert "3 of them by earlier runs" in capsys.readouterr().err


def test_repeated_rows_are_counted(run, put, capsys):
    assert run("--shard-rows", "3", "--dedupe") == 0
    assert " repeated, " not in capsys.readouterr().err
    put("in.jsonl", jsonl(*({"text": f"{row % 2}"} for row in range(6))))
    assert run("--shard-rows", "3", "--dedupe", "--restart") == 0
    assert ", 4 repeated, " in capsys.readouterr().err


def test_options_reach_the_job(run, tmp_path, embedder):
    options = [
        "--embedding-column",
        "v",
        "--output-dtype",
        "float16",
        "--graph",
        "padded",
        "--max-batch-tokens",
        "64",
    ]
    assert run(*options, "--overflow", "error", "--parallel-batches", "2", prompt="none") == 0
    table = output_of(tmp_path / "out")
    assert table.column_names == ["contents", "text", "v"]
    assert str(table.schema.field("v").type.value_type) == "halffloat"


@pytest.mark.parametrize(
    ("arguments", "shares"),
    [
        ([], False),
        (["--share-weights"], True),
        (["--engine", "ray"], False),
        (["--engine", "ray", "--ray-actors", "2"], True),
    ],
)
def test_when_weights_are_shared(run, monkeypatch, arguments, shares):
    told = []
    monkeypatch.setattr(
        Embedder, "open", lambda _artifact, options: told.append(options.share_weights) or stop()
    )
    monkeypatch.setattr(ray_engine, "_import_ray", lambda: None)
    monkeypatch.setattr(ray_engine, "_connected", lambda *_ray: nullcontext())
    monkeypatch.setattr(ray_engine, "_run", lambda _ray, task, *_rest: Worker(task))
    assert run(*arguments) == 1
    assert told == [shares]


def stop():
    raise InputError("stopped by the test")


def test_errors_are_one_line(run, capsys):
    assert run("--text-column", "body") == 1
    assert capsys.readouterr().err.startswith("koe5-onnx: error: the input has no column 'body'")
    assert run("--strict") == 1
    assert "in.jsonl, line 6: expected text, found null" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--ray-actors", "2"], ["--engine", "dask"], ["--output-dtype", "int4"]])
def test_wrong_usage(run, capsys, more):
    with pytest.raises(SystemExit) as caught:
        run(*more)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: koe5-onnx bulk")


def test_the_choices_are_those_of_the_package(capsys):
    from koe5_onnx.bulk import OUTPUT_DTYPES, OUTPUT_FORMATS

    with pytest.raises(SystemExit):
        cli.parse(["bulk", "--help"])
    shown = capsys.readouterr().out.replace("\n", "")
    for choices in (OUTPUT_DTYPES, OUTPUT_FORMATS):
        assert "{" + ",".join(choices) + "}" in shown


def test_a_bar_on_a_terminal(run, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("--shard-rows", "1") == 0
    shown = capsys.readouterr().err
    assert "tokens/s]" in shown
    assert "100%" in shown


def test_a_line_per_minute_if_not_on_a_terminal(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(bulk.time, "monotonic", lambda: now[0])
    lines = bulk._Lines()
    for rows, seconds in ((100, 0), (150, 59), (200, 1), (300, 59), (400, 1)):
        now[0] += seconds
        lines(Progress(rows, 1000, rows * 60))
    assert capsys.readouterr().err.splitlines() == [
        "200 of 1,000 rows, 100 tokens/s, about 8 min left",
        "400 of 1,000 rows, 150 tokens/s, about 4 min left",
    ]


@pytest.mark.parametrize(
    ("missing", "code", "message"),
    [
        (
            "pyarrow",
            "import koe5_onnx.bulk",
            "embedding files in bulk requires the package pyarrow. Run pip install",
        ),
        ("filelock", "import koe5_onnx.bulk", "embedding files in bulk requires the package filelock"),
        (
            "ray",
            "from koe5_onnx.bulk.ray_engine import _import_ray; _import_ray()",
            "the Ray engine requires the package ray. Run pip install '.[ray]'",
        ),
    ],
)
def test_an_extra_that_is_missing_is_named(missing, code, message):
    source = str(Path(koe5_onnx.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules[{missing!r}] = None\n{code}"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": source, "PATH": ""},
    )
    assert done.returncode == 1
    assert f"MissingDependencyError: {message}" in done.stderr
