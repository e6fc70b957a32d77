"""Arguments that embed and bulk share: which artifact, what the texts are, and how batches run."""

from __future__ import annotations

import argparse


def add_artifact_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which artifact embeds, and what the texts are."""
    parser.add_argument("--artifact", required=True, metavar="DIR_OR_HUB_ID", help="an exported artifact")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument(
        "--prompt",
        required=True,
        choices=("query", "passage", "none"),
        help="what the texts are: the model expects it in front, and a wrong one costs quality",
    )
    parser.add_argument(
        "--dim",
        type=int,
        metavar="N",
        help="components to keep of each embedding: one that the model was trained to be cut to, as "
        "koe5-onnx info lists them (default: all)",
    )


def prompt_of(args: argparse.Namespace) -> str:
    """Return the prompt's name for an Embedder, "" for none."""
    return "" if args.prompt == "none" else str(args.prompt)


def add_engine_arguments(group: argparse._ActionsContainer) -> None:
    """Declare the options of `Embedder.open` that say how batches run."""
    group.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    group.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads of a batch (default: the usable cores)"
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="batches that run at the same time (default: what koe5-onnx tune found, else 1)",
    )
    group.add_argument(
        "--kernels",
        default="auto",
        choices=("auto", "fused", "stock"),
        help="fused CPU kernels where they run (auto), always (fused) or never (stock)",
    )
    group.add_argument(
        "--max-batch-tokens", type=int, metavar="N", help="tokens of one batch, padding included"
    )
    group.add_argument("--gpu-mem-limit", type=int, metavar="BYTES", help="what may be taken on a GPU")
    group.add_argument(
        "--share-weights",
        action="store_true",
        help="keep fused kernels' packed weights in the cache folder, where several processes map them",
    )
