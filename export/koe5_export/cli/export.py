"""koe5-onnx export: a PyTorch checkpoint to a proved artifact (extras `export` and `reference`)."""

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
    """Declare the verb and its arguments."""
    parser = verbs.add_parser(
        "export",
        help="export a checkpoint and prove it against PyTorch",
        description="Export a checkpoint to an ONNX artifact, measure it against PyTorch, and publish it "
        "only if it is close enough.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default=DEFAULT_CHECKPOINT,
        metavar="CHECKPOINT",
        help=f"a checkpoint's folder or Hub id (default: {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the artifact")
    parser.add_argument(
        "--precision",
        choices=(*PRECISIONS, _AUTO),
        default="fp32",
        help="default: fp32; auto chooses for this machine's CPU and says why",
    )
    parser.add_argument(
        "--exporter",
        choices=("builder", "optimum"),
        default="builder",
        help="what writes the graph: this project's builder (default), or Optimum (fp32, any encoder that "
        "Optimum can trace; extra optimum)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument(
        "--calibration", metavar="FILE", help="texts that int8, int8-block and int4-block are fitted to"
    )
    add_publish_options(parser)


def add_publish_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that export and import share."""
    parser.add_argument("--verification", metavar="FILE", help="more texts to measure on, one a line")
    parser.add_argument("--force", action="store_true", help="replace OUT once the new artifact is proved")
    parser.add_argument(
        "--like", metavar="HUB_ID", help="a local copy of this model: take its known contract"
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="a prompt that the checkpoint's own files do not name, as query='query: '; may be repeated",
    )
    parser.add_argument(
        "--matryoshka-dims",
        type=_dims,
        metavar="N,N",
        help="widths that the model was trained to be cut to, as 256,512 (default: what the checkpoint says)",
    )
    parser.add_argument(
        "--unicode-form",
        choices=("nfc", "none"),
        default="nfc",
        help="compose texts before they are tokenized (nfc, default), as decomposed Hangul of macOS, or not",
    )
    add_gate(parser)


def publish_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of PublishOptions.

    Raises:
        InputError: A prompt or a bound has another form, or a file of texts cannot be used.
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
    """Turn "256,512" into (256, 512), and "" into ()."""
    try:
        return tuple(int(width) for width in given.split(",")) if given else ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers, as 256,512; found {given!r}") from None


def add_gate(parser: argparse.ArgumentParser) -> None:
    """Declare --gate, which export, import and verify share."""
    parser.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a stricter bound: cosine_min, cosine_mean, max_abs_diff or batch_cosine_min; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Export and return the exit code.

    Raises:
        Koe5Error: The checkpoint, an option or the artifact's fidelity will not do.
    """
    koe5_export = import_export()
    from koe5_export.checkpoint import Checkpoint

    precision = _chosen_precision() if args.precision == _AUTO else args.precision
    options = {"precision": precision, "exporter": args.exporter, **publish_options(args)}
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
    """Print how near an artifact is, before it is published."""
    from koe5_export.gate import describe

    print(describe(certificate), flush=True)


def print_artifact(artifact: Artifact) -> None:
    """Print what was published."""
    manifest = artifact.manifest
    print(f"{artifact.path}: {manifest.precision}, {manifest.total_bytes / 1e6:.1f} MB")
    if fused := manifest.recipe.get("fused_graph"):
        print(f"graph for fused CPU kernels: {fused}")
    if packed := manifest.recipe.get("packed_graph"):
        print(f"graph without padding for CUDA: {packed}")


def import_export() -> Any:
    """Return the package koe5_export with all that an export needs.

    Raises:
        MissingDependencyError: Its extra is not installed.
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
        InputError: One has another form.
    """
    gate = {}
    for bound in bounds:
        name, _, value = bound.partition("=")
        try:
            gate[name] = float(value)
        except ValueError as error:
            raise InputError(f"--gate is {bound!r}: expected NAME=VALUE, as cosine_min=0.99") from error
    return gate


def _parse_prompts(prompts: list[str]) -> dict[str, str]:
    """Turn ["query=query: "] into {"query": "query: "}.

    Raises:
        InputError: One has another form, or a name is given twice.
    """
    parsed: dict[str, str] = {}
    for given in prompts:
        name, equals, text = given.partition("=")
        if not equals or not name or name in parsed:
            raise InputError(f"--prompt is {given!r}: expected NAME=TEXT, each name once, as query='query: '")
        parsed[name] = text
    return parsed


def texts_of(file: str, option: str) -> list[str]:
    """The texts of an option's file.

    Raises:
        InputError: It is of an unknown kind, empty or not UTF-8.
    """
    if suffix_of_input(file) is None:
        raise InputError(f"{option} is {file!r}: expected a .txt file or a .jsonl file with the field text")
    if not (texts := read_texts(file, "text")):
        raise InputError(f"{file} is empty: expected one text a line")
    return texts
