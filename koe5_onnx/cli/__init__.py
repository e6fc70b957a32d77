"""The command koe5-onnx, with one module per subcommand.

A module has two functions: `add_parser(verbs)` declares its arguments, and `run(args) -> int` runs it and
returns the exit code. Warnings of this package are printed on stderr without their location in the code.

Exit codes::

    0    success
    1    error, explained on stderr; or doctor found a problem, or identify found no maker
    2    invalid usage
    130  interrupted (Ctrl-C)
    141  the reader of the output closed the pipe
    143  terminated (SIGTERM)
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn, Protocol, TextIO

from koe5_onnx import Koe5Error, Koe5Warning, __version__
from koe5_onnx.cli import bulk, doctor, embed, identify, info, serve, tune


class Verb(Protocol):
    """A module that implements a subcommand."""

    def add_parser(self, verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Declare the subcommand and its arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the subcommand and return the exit code."""


def verbs() -> tuple[Verb, ...]:
    """Return the modules of all subcommands, in the order of --help."""
    # Imported by name, because modules of koe5_onnx must not contain an import of koe5_export.
    exporting: tuple[Verb, ...] = importlib.import_module("koe5_export.cli").VERBS
    return (*exporting, info, embed, bulk, serve, tune, doctor, identify)


_EXIT_CODES = (__doc__ or "").partition("Exit codes::\n\n")[2]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse `argv`, or the command line of this process if it is None.

    Raises:
        SystemExit: With code 2 for invalid usage, 0 after --help or --version.
    """
    parser = argparse.ArgumentParser(
        prog="koe5-onnx",
        description="KoE5 text embeddings (Korean and English) with ONNX Runtime.",
        epilog=f"exit codes:\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"koe5-onnx {__version__}")
    subparsers = parser.add_subparsers(metavar="VERB", required=True)
    for verb in verbs():
        verb.add_parser(subparsers)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Run the parsed subcommand and return its exit code."""
    code: int = args.run(args)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run a command. Print expected errors on stderr and return the exit code."""
    args = parse(argv)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", Koe5Warning)
            warnings.showwarning = _show_warning(warnings.showwarning)
            return _run_reporting_errors(args)
    except KeyboardInterrupt:
        print("koe5-onnx: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_reporting_errors(args: argparse.Namespace) -> int:
    try:
        code = run(args)
        # Flush here, so that a closed pipe raises an error in this block and not when the interpreter exits.
        print(end="", flush=True)
    except BrokenPipeError:
        _discard_stdout()
        return 141
    except (Koe5Error, OSError) as error:
        print(f"koe5-onnx: error: {_message(error)}", file=sys.stderr)
        return 1
    return code


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        is_denied = isinstance(error, PermissionError) and "://" not in str(error.filename)
        advice = ". Check the owner and the mode of the file and its folders" if is_denied else ""
        return f"{error.filename}: {error.strerror}{advice}"
    return str(error)


def _discard_stdout() -> None:
    """Redirect stdout to os.devnull, so that the flush at exit does not raise a second BrokenPipeError."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM by raising SystemExit, so that `finally` blocks delete unfinished files."""
    raise SystemExit(128 + number)


def _show_warning(show_other: Callable[..., None]) -> Callable[..., None]:
    """Return a replacement for warnings.showwarning that prints this package's warnings without location."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, Koe5Warning):
            print(f"koe5-onnx: warning: {message}", file=sys.stderr)
        else:
            show_other(message, category, filename, lineno, file, line)

    return show
