"""koe5-onnx import: an ONNX folder by others to a proved artifact (extras `export` and `reference`)."""

from __future__ import annotations

import argparse
from pathlib import Path

from koe5_export.cli.export import add_publish_options, import_export, print_artifact, publish_options
from koe5_export.cli.stages import progress


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb and its arguments."""
    parser = verbs.add_parser(
        "import",
        help="turn an ONNX folder that others exported into a proved artifact",
        description="Give a graph that Optimum or others exported an artifact's interface, measure it "
        "against the PyTorch checkpoint, and publish it only if it is close enough.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds onnx/model.onnx or model.onnx")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the artifact")
    parser.add_argument(
        "--checkpoint",
        metavar="C",
        help="folder or Hub id of the PyTorch checkpoint (default: FOLDER's own weights)",
    )
    parser.add_argument("--file", metavar="NAME", help="the graph inside FOLDER, as onnx/model_O2.onnx")
    parser.add_argument(
        "--precision", metavar="P", help="whose gate it must pass (default: found in the graph)"
    )
    add_publish_options(parser)


def run(args: argparse.Namespace) -> int:
    """Import and return the exit code.

    Raises:
        Koe5Error: The graph, the checkpoint or the fidelity will not do.
    """
    import_export()
    from koe5_export.import_onnx import ImportOptions, import_folder

    options = ImportOptions(args.checkpoint, args.file, args.precision, **publish_options(args))
    with progress() as report:
        artifact = import_folder(args.folder, args.out, options, report)
    print_artifact(artifact)
    return 0
