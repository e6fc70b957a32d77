"""koe5-onnx export: export a PyTorch checkpoint and measure it (extras `export` and `reference`)."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from koe5_export.cli.stages import progress
from koe5_onnx import Artifact, Certificate, InputError, MissingDependencyError
from koe5_onnx.artifact import PRECISIONS
from koe5_onnx.cli.input_file import read_texts, suffix_of_input
from koe5_onnx.engine.machine import cpu_features

DEFAULT_CHECKPOINT = "nlpai-lab/KoE5"
_AUTO = "auto"


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its arguments."""
    parser = verbs.add_parser(
        "export",
        help="export a checkpoint and measure it against PyTorch",
        description="Export a checkpoint to an ONNX artifact, measure it against PyTorch, and keep it "
        "only if the differences are within the bounds of its precision (the gate).",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default=DEFAULT_CHECKPOINT,
        metavar="CHECKPOINT",
        help=f"folder or Hub id of the checkpoint (default: {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the artifact")
    parser.add_argument(
        "--precision",
        choices=(*PRECISIONS, _AUTO),
        default="fp32",
        help="default: fp32; auto chooses a precision for this machine's CPU and prints the reason",
    )
    parser.add_argument(
        "--exporter",
        choices=("builder", "optimum"),
        default="builder",
        help="builder (default): build the graph from the weights; optimum: trace the checkpoint with "
        "Optimum (fp32 only, also for encoders that builder does not support; requires the extra optimum)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the Hub id")
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="file of texts for calibrating int8, int8-block and int4-block, one per line (default: built-in "
        "texts)",
    )
    add_artifact_options(parser)


def add_artifact_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that export and import share."""
    parser.add_argument(
        "--verification", metavar="FILE", help="file of additional texts to measure on, one per line"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace OUT after the new artifact has passed its gate"
    )
    parser.add_argument(
        "--like",
        metavar="HUB_ID",
        help="known model that the checkpoint is a copy of, for the pooling and prompts that its files lack",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="a prompt that the checkpoint's files lack, for example query='query: '; may be repeated",
    )
    parser.add_argument(
        "--matryoshka-dims",
        type=_dims,
        metavar="N,N",
        help="Matryoshka dimensions of the model, for example 256,512 (default: read from the checkpoint)",
    )
    parser.add_argument(
        "--unicode-form",
        choices=("nfc", "none"),
        default="nfc",
        help="nfc (default): compose texts, such as decomposed Hangul from macOS, before tokenization; "
        "none: leave them unchanged",
    )
    add_gate(parser)


def artifact_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `ArtifactOptions` from the command line.

    Raises:
        InputError: A prompt or a bound cannot be parsed, or a file of texts is not valid.
    """
    return {
        "verification": () if args.verification is None else texts_of(args.verification, "--verification"),
        "gate": parse_gate(args.gate),
        "force": args.force,
        "announce": announce,
        "like": args.like,
        "prompts": _parse_prompts(args.prompt),
        "matryoshka_dims": args.matryoshka_dims,
        "unicode_form": None if args.unicode_form == "none" else args.unicode_form.upper(),
    }


def _dims(given: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in given.split(",")) if given else ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {given!r}; expected integers, for example 256,512") from None


def add_gate(parser: argparse.ArgumentParser) -> None:
    """Declare the option --gate of export, import and verify."""
    parser.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="stricter bound: cosine_min, cosine_mean, max_abs_diff or batch_cosine_min; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Export and return the exit code.

    Raises:
        Koe5Error: The checkpoint or an option is not valid, or the artifact fails its gate.
    """
    if args.checkpoint == DEFAULT_CHECKPOINT and (args.out / "config.json").is_file():
        raise InputError(
            f"{args.out} is a checkpoint, so it cannot be OUT. To export it, run koe5-onnx export "
            f"{args.out} OUT"
        )
    koe5_export = import_export()
    from koe5_export.checkpoint import Checkpoint

    precision = _chosen_precision() if args.precision == _AUTO else args.precision
    options = {"precision": precision, "exporter": args.exporter, **artifact_options(args)}
    if args.calibration is not None:
        options["calibration"] = texts_of(args.calibration, "--calibration")
    checkpoint = Checkpoint.open(args.checkpoint, args.revision, any_encoder=args.exporter == "optimum")
    with progress() as report:
        artifact = koe5_export.export_checkpoint(
            checkpoint, args.out, koe5_export.ExportOptions(**options), report
        )
    print_artifact(artifact)
    return 0


def _chosen_precision() -> str:
    from koe5_export.precision.auto import choose_precision

    choice = choose_precision(cpu_features())
    print(f"precision {choice.precision}: {choice.reason}", file=sys.stderr)
    return choice.precision


def announce(certificate: Certificate) -> None:
    """Print a certificate, before its artifact is renamed to OUT."""
    from koe5_export.gate import describe

    print(describe(certificate), flush=True)


def print_artifact(artifact: Artifact) -> None:
    """Print path, precision, size and packed graph of an artifact."""
    manifest = artifact.manifest
    print(f"{artifact.path}: {manifest.precision}, {manifest.total_bytes / 1e6:.1f} MB")
    if packed := manifest.recipe.get("packed_graph"):
        print(f"packed graph: {packed}")


def import_export() -> Any:
    """Import the dependencies of an export and return the package koe5_export.

    Raises:
        MissingDependencyError: A dependency is not installed.
    """
    import koe5_export

    try:
        importlib.import_module("koe5_export.export")
    except ImportError as error:
        raise MissingDependencyError(error.name or "onnx", "export,reference", "exporting") from error
    return koe5_export


def parse_gate(bounds: list[str]) -> dict[str, float]:
    """Turn ["cosine_min=0.99"] into {"cosine_min": 0.99}.

    Raises:
        InputError: A bound cannot be parsed.
    """
    gate = {}
    for bound in bounds:
        name, _, value = bound.partition("=")
        try:
            gate[name] = float(value)
        except ValueError as error:
            raise InputError(
                f"--gate is {bound!r}; expected NAME=VALUE, for example cosine_min=0.99"
            ) from error
    return gate


def _parse_prompts(prompts: list[str]) -> dict[str, str]:
    """Turn ["query=query: "] into {"query": "query: "}."""
    parsed: dict[str, str] = {}
    for given in prompts:
        name, equals, text = given.partition("=")
        if not equals or not name or name in parsed:
            raise InputError(
                f"--prompt is {given!r}; expected NAME=TEXT, for example query='query: ', and each name once"
            )
        parsed[name] = text
    return parsed


def texts_of(file: str, option: str) -> list[str]:
    """Read the texts of a file that was passed with `option`.

    Raises:
        InputError: The file is empty or neither .txt nor .jsonl, or a line is not valid.
    """
    if suffix_of_input(file) is None:
        raise InputError(f"{option} is {file!r}; expected a .txt file or a .jsonl file with the field text")
    if not (texts := read_texts(file)):
        raise InputError(f"{file} is empty. Write one text per line")
    return texts
