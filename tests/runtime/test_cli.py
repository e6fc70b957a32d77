"""Behavior of the command that all subcommands share."""

from __future__ import annotations

import argparse

import pytest

from koe5_onnx import HubError, InputError, __version__, cli


@pytest.fixture
def run_verb(monkeypatch):
    """Return a function that runs `main` with a subcommand that the test defines."""

    def run(action) -> int:
        monkeypatch.setattr(cli, "parse", lambda argv: argparse.Namespace(run=lambda args: action()))
        return cli.main([])

    return run


def failing(error: BaseException):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("the field is wrong"), 1, "koe5-onnx: error: the field is wrong"),
        (HubError("cannot fetch it"), 1, "koe5-onnx: error: cannot fetch it"),
        (FileNotFoundError(2, "No such file", "a.npy"), 1, "koe5-onnx: error: a.npy: No such file"),
        (
            PermissionError(13, "Permission denied", "a.npy"),
            1,
            "koe5-onnx: error: a.npy: Permission denied. Check the owner and the mode of the file and its "
            "folders",
        ),
        (
            PermissionError(13, "Permission denied", "s3://b/a"),
            1,
            "koe5-onnx: error: s3://b/a: Permission denied",
        ),
        (OSError("odd"), 1, "koe5-onnx: error: odd"),
        (KeyboardInterrupt(), 130, "koe5-onnx: interrupted"),
    ],
)
def test_errors_are_one_line(run_verb, capsys, error, code, line):
    assert run_verb(failing(error)) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_a_fault_of_the_program_is_not_hidden(run_verb):
    with pytest.raises(ZeroDivisionError):
        run_verb(failing(ZeroDivisionError()))


def test_warnings_of_others_keep_their_format(run_python):
    """The command runs in a separate process, because pytest replaces warnings.showwarning."""
    code = """
import argparse, warnings
from koe5_onnx import TruncationWarning, cli

def warn(args):
    warnings.warn("ours", TruncationWarning)
    warnings.warn("theirs", UserWarning)
    return 0

cli.parse = lambda argv: argparse.Namespace(run=warn)
cli.main([])
"""
    first, second, *_source = run_python(code).stderr.splitlines()
    assert first == "koe5-onnx: warning: ours"
    assert second.endswith("UserWarning: theirs")


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["embed"], ["doctor", "--unknown"]])
def test_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: koe5-onnx")


def test_version_and_help(capsys):
    for argument, expected in (("--version", f"koe5-onnx {__version__}"), ("--help", "143  terminated")):
        with pytest.raises(SystemExit) as caught:
            cli.main([argument])
        assert caught.value.code == 0
        assert expected in capsys.readouterr().out


def test_as_a_command(run_python, artifact_path, tmp_path):
    (tmp_path / "in.txt").write_text("가\n나\n", encoding="utf-8")
    arguments = ["--artifact", artifact_path, "--prompt-name", "query", "--output", tmp_path / "out.npy"]
    done = run_python("-m", "koe5_onnx.cli", "embed", tmp_path / "in.txt", *arguments)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.startswith("2 texts, ")


def test_a_reader_that_closes_the_pipe(run_python):
    """The command prints no traceback, as in `koe5-onnx doctor | head -0`."""
    code = """
import os, subprocess, sys
reader, writer = os.pipe()
os.close(reader)
command = [sys.executable, "-m", "koe5_onnx.cli", "doctor"]
done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
print(done.returncode, done.stderr)
"""
    assert run_python(code).stdout == "141 b''\n"
