"""The command of the benchmarks: `python -m benchmarks NAME ...`; one file a name.

A file takes part by `add_arguments(parser)` and by `run(args) -> int`, which measures, prints and gives the
exit code; the first line of its docstring is its help.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from benchmarks import checkpoint, export, quality
from benchmarks.speed import coldstart, gpu, latency, memory, report, serve, smoke, throughput
from koe5_onnx import Koe5Error


class Benchmark(Protocol):
    """A module of this folder that the command knows by its name."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit code."""


BENCHMARKS: dict[str, Benchmark] = {
    "checkpoint": checkpoint,
    "export": export,
    "quality": quality,
    "throughput": throughput,
    "latency": latency,
    "memory": memory,
    "coldstart": coldstart,
    "serve": serve,
    "report": report,
    "smoke": smoke,
    "gpu": gpu,
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `argv` None takes the one of this process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measurements of koe5-onnx.")
    names = parser.add_subparsers(metavar="NAME", required=True)
    for name, module in BENCHMARKS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        one = names.add_parser(name, help=summary, description=summary)
        one.set_defaults(run=module.run)
        module.add_arguments(one)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn what goes wrong into one line on stderr and an exit code."""
    args = parse(argv)
    try:
        code: int = args.run(args)
    except (Koe5Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
