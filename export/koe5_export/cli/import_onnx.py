"""koe5-onnx import: convert other ONNX exports to artifacts (extras `export` and `reference`)."""

from __future__ import annotations

import argparse
from pathlib import Path

from koe5_export.cli.export import add_artifact_options, artifact_options, import_export, print_artifact
from koe5_export.cli.stages import progress


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its arguments."""
    parser = verbs.add_parser(
        "import",
        help="convert an ONNX export of another tool to an artifact",
        description="Convert an ONNX graph from Optimum or another tool to an artifact, measure it against "
        "the PyTorch checkpoint, and keep it only if the differences are within the bounds of its "
        "precision (the gate).",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder with onnx/model.onnx or model.onnx"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the artifact")
    parser.add_argument(
        "--checkpoint",
        metavar="C",
        help="folder or Hub id of the PyTorch checkpoint (default: the weights in FOLDER)",
    )
    parser.add_argument("--file", metavar="NAME", help="the graph in FOLDER, for example onnx/model_O2.onnx")
    parser.add_argument(
        "--precision", metavar="P", help="precision whose gate applies (default: detected from the graph)"
    )
    add_artifact_options(parser)


def run(args: argparse.Namespace) -> int:
    """Import and return the exit code.

    Raises:
        Koe5Error: The graph or the checkpoint is not supported, or the artifact fails its gate.
    """
    import_export()
    from koe5_export.import_onnx import ImportOptions, import_folder

    options = ImportOptions(args.checkpoint, args.file, args.precision, **artifact_options(args))
    with progress() as report:
        artifact = import_folder(args.folder, args.out, options, report)
    print_artifact(artifact)
    return 0
