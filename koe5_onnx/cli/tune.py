"""koe5-onnx tune: measure the fastest graph and batch settings on this machine."""

from __future__ import annotations

import argparse

from koe5_onnx import Artifact
from koe5_onnx.cli.engine_arguments import add_engine_arguments, engine_options
from koe5_onnx.engine.tuning import describe, tune


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its arguments."""
    parser = verbs.add_parser(
        "tune",
        help="measure and store the fastest graph and batch settings for this machine",
        description="Measure batch sizes and parallel batches on this machine (KoE5 in int8: a few minutes) "
        "and store the best settings per artifact, CPU or GPU, cores, and versions of ONNX Runtime and of "
        "the fused kernels. On CPUs, the packed and the padded graph are compared. --graph, "
        "--parallel-batches, --threads and --max-batch-tokens stay fixed if they are given.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("artifact", metavar="DIR_OR_HUB_ID", help="an exported artifact")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="measurements per setting (default: 3)"
    )
    add_engine_arguments(parser.add_argument_group("engine"), parallel_batches=None)


def run(args: argparse.Namespace) -> int:
    """Measure, print the best settings and return the exit code.

    Raises:
        Koe5Error: The artifact cannot be opened or the device cannot run it.
    """
    options = engine_options(args)
    artifact = Artifact.open(args.artifact, revision=options.revision)
    profile = tune(artifact, options, rounds=max(1, args.rounds), report=print)
    print(f"best for throughput (embed, parallel_batches=None): {describe(profile.best)}")
    print(f"best with one batch at a time (Embedder's default): {describe(profile.one_at_a_time)}")
    return 0
