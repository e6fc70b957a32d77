"""koe5-onnx verify: measure an artifact against PyTorch or its model card."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from koe5_export.cli.export import add_gate, import_export, parse_gate, texts_of
from koe5_export.cli.stages import progress
from koe5_onnx import Artifact, Embedder, FidelityError, InputError
from koe5_onnx.cli.certificate_report import agreement_in_words


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its arguments."""
    parser = verbs.add_parser(
        "verify",
        help="measure an artifact against PyTorch or its model card",
        description="Measure an artifact against the PyTorch checkpoint that it was exported from; with "
        "--card, against the similarity matrix in the model card (does not require PyTorch).",
    )
    parser.set_defaults(run=run)
    parser.add_argument("artifact", metavar="ARTIFACT", help="folder or Hub id of the artifact")
    parser.add_argument(
        "--checkpoint",
        metavar="C",
        help="folder or Hub id of the checkpoint (default: the Hub id in the manifest)",
    )
    parser.add_argument(
        "--verification", metavar="FILE", help="file of additional texts to measure on, one per line"
    )
    parser.add_argument(
        "--card",
        type=Path,
        metavar="README.md",
        help="the model card, or a .json file with sentences and similarity",
    )
    add_gate(parser)


def run(args: argparse.Namespace) -> int:
    """Verify and return the exit code.

    Raises:
        Koe5Error: The artifact differs too much from the checkpoint or the model card, or a file, an option
            or a dependency is missing or not valid.
    """
    artifact = Artifact.open(args.artifact)
    if args.card is not None:
        _against_card(artifact, args.card)
    if args.card is None or args.checkpoint is not None:
        _against_checkpoint(artifact, args)
    return 0


def _against_checkpoint(artifact: Artifact, args: argparse.Namespace) -> None:
    koe5_export = import_export()
    from koe5_export.checkpoint import Checkpoint
    from koe5_export.gate import describe

    source = artifact.manifest.source
    if args.checkpoint is None and source.revision is None:
        raise InputError(
            f"{artifact.path} was exported from a local folder. Pass this folder, {source.repository}, with "
            "--checkpoint"
        )
    name = args.checkpoint or source.repository
    revision = source.revision if args.checkpoint is None else None
    checkpoint = Checkpoint.open(name, revision, any_encoder=True)
    given = texts_of(args.verification, "--verification") if args.verification else ()
    with progress() as report:
        certificate = koe5_export.verify_artifact(
            artifact, checkpoint, given, parse_gate(args.gate), report=report
        )
    graph = certificate.measured_with["graph"]
    print(f"{artifact.path}: {graph} passed its gate on {certificate.overall.texts} texts")
    print(describe(certificate))
    for bucket, found in certificate.by_length.items():
        print(f"  {bucket:>9} tokens: {agreement_in_words(found)}")


def _against_card(artifact: Artifact, file: Path) -> None:
    import_export()
    from koe5_export.model_card import read_card, tolerance

    card = read_card(file)
    with Embedder.open(artifact.path) as embedder:
        found = embedder.encode(card.sentences)
        similarity = embedder.similarity(found, found)
    difference = float(np.abs(similarity - card.similarity).max())
    allowed = tolerance(artifact.manifest.precision, card.decimals)
    figures = (
        f"largest difference from the similarities of {len(card.sentences)} sentences in {file} "
        f"({card.decimals} decimal places): {difference:.6f}, allowed {allowed:g}"
    )
    if difference > allowed:
        raise FidelityError(f"{figures}\nfound:\n{np.round(similarity, card.decimals)}")
    print(figures)
