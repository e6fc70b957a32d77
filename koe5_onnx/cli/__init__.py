"""The command koe5-onnx: one file a verb; what all verbs share is here.

A verb is a module with `add_parser(verbs)`, which declares its arguments, and `run(args) -> int`, which does
the work and gives the exit code. Warnings of this package become one line on stderr.

Exit codes::

    0    done
    1    it did not work: the last line on stderr says why; or doctor found something wrong
    2    wrong usage
    130  interrupted (Ctrl-C)
    141  whoever read the output stopped reading
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
from koe5_onnx.cli import bulk, doctor, embed, info, serve, tune


class Verb(Protocol):
    """A module of this folder that is a verb."""

    def add_parser(self, verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Declare the verb and its arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit code."""


def verbs() -> tuple[Verb, ...]:
    """Return all verbs, those of the export first."""
    # By name: the runtime does not depend on the export, which comes in the same distribution.
    exporting: tuple[Verb, ...] = importlib.import_module("koe5_export.cli").VERBS
    return (*exporting, info, embed, bulk, serve, tune, doctor)


_EXIT_CODES = (__doc__ or "").partition("Exit codes::\n\n")[2]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `argv` None takes the one of this process.

    Raises:
        SystemExit: With code 2 for wrong usage, 0 after --help or --version.
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
    """Run the verb that `parse` found and return its exit code."""
    code: int = args.run(args)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn what goes wrong into one line on stderr and an exit code."""
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
        # A reader that went away must show up here, not at the interpreter's exit.
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
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _discard_stdout() -> None:
    """Let the interpreter flush stdout at exit without a second BrokenPipeError."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    """End by an exception, so that unfinished files are removed on the way out."""
    raise SystemExit(128 + number)


def _show_warning(show_other: Callable[..., None]) -> Callable[..., None]:
    """A replacement of warnings.showwarning that shows this package's warnings as one line."""

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
