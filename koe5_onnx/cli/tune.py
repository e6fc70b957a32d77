"""koe5-onnx tune: measures batch size and workers on this machine, for `embed` and Embedder to use."""

from __future__ import annotations

import argparse

from koe5_onnx import Artifact
from koe5_onnx.engine.tuning import describe, tune


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb and its arguments."""
    parser = verbs.add_parser(
        "tune",
        help="measure what is fastest on this machine, and remember it",
        description="Measure batch sizes and workers on this machine (KoE5 in int8: about a minute) and "
        "remember the best, per artifact, CPU or GPU, cores and ONNX Runtime version.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("artifact", metavar="DIR_OR_HUB_ID", help="an exported artifact")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--kernels", default="auto", choices=("auto", "fused", "stock"), help="which graph")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="measurements of each (default: 3)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print and return the exit code.

    Raises:
        Koe5Error: The artifact or the device cannot be used.
    """
    artifact = Artifact.open(args.artifact)
    profile = tune(artifact, args.device, args.kernels, rounds=max(1, args.rounds), report=print)
    print(f"best for throughput (embed, workers=None): {describe(profile.best)}")
    print(f"best with one worker (Embedder's default): {describe(profile.lowest_latency)}")
    return 0
