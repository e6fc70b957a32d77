"""Command line of the benchmarks: `python -m benchmarks NAME ...`, with one module per name.

Each module provides `add_arguments(parser)` and `run(args) -> int`, which does the work and returns the exit
code. The first line of the module's docstring is its help text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from benchmarks import checkpoint, export, quality
from benchmarks.speed import coldstart, gpu, latency, memory, performance, serve, smoke, throughput
from koe5_onnx import Koe5Error


class Benchmark(Protocol):
    """A module of this package that is available as a subcommand."""

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
    "performance": performance,
    "smoke": smoke,
    "gpu": gpu,
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse `argv`, or the arguments of this process if it is None."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of koe5-onnx.")
    names = parser.add_subparsers(metavar="NAME", required=True)
    for name, module in BENCHMARKS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        one = names.add_parser(name, help=summary, description=summary)
        one.set_defaults(run=module.run)
        module.add_arguments(one)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark and return the exit code. Expected errors are printed on stderr."""
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
