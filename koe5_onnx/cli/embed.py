"""koe5-onnx embed: embed a file of texts.

The command reads all texts (input_file.py), embeds them in one call and then writes the output
(output_file.py). It reports invalid input before it embeds any text. An interrupted run leaves no partial
output.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from koe5_onnx import Embedder, Encoded
from koe5_onnx.cli.engine_arguments import (
    add_encoding,
    add_engine_arguments,
    add_text_arguments,
    engine_options,
    prompt_of,
)
from koe5_onnx.cli.input_file import read_texts, suffix_of_input
from koe5_onnx.cli.output_file import require_output, suffix_of_output, write
from koe5_onnx.cli.report import counted
from koe5_onnx.files import atomic_path


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its arguments."""
    parser = verbs.add_parser(
        "embed",
        help="embed the texts of a file",
        description="Embed the texts of a file and write one embedding per text, in the same order.",
    )
    parser.set_defaults(run=run, usage_error=parser.error)
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="a file or URL. .txt or - (stdin): one text per line; .jsonl: one object per line",
    )
    add_text_arguments(parser)
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="OUT",
        help=".npy: float32[n, dim]; .jsonl: one object per line",
    )
    parser.add_argument(
        "--text-column", metavar="NAME", help='field with the text in a .jsonl input (default: "text")'
    )
    add_encoding(parser)
    add_engine_arguments(parser.add_argument_group("engine"), parallel_batches=None)


def run(args: argparse.Namespace) -> int:
    """Embed the input and return the exit code.

    Raises:
        Koe5Error: The input or the artifact is invalid, or the device cannot run the artifact.
        OSError: A file cannot be read or written.
    """
    _check_usage(args)
    options = engine_options(args)
    require_output(args.output, args.input)
    texts = read_texts(args.input, args.text_column or "text", args.encoding)
    with atomic_path(args.output) as temporary, temporary.open("xb") as stream:
        with Embedder.open(args.artifact, options=options) as embedder, _progress() as on_progress:
            start = time.perf_counter()
            encoded = embedder.encode_with_info(
                texts, **prompt_of(args), dim=args.dim, on_progress=on_progress
            )
            seconds = time.perf_counter() - start
            limit = embedder.contract.max_tokens
        write(stream, encoded, suffix_of_output(args.output))
    print(_summary(encoded, limit, seconds, args.output), file=sys.stderr)
    return 0


def _check_usage(args: argparse.Namespace) -> None:
    usage_error: Callable[[str], None] = args.usage_error
    if suffix_of_input(args.input) is None:
        usage_error(f"INPUT is {args.input!r}: expected -, a .txt file or a .jsonl file")
    if args.text_column is not None and suffix_of_input(args.input) != ".jsonl":
        usage_error("--text-column requires a .jsonl input")
    if suffix_of_output(args.output) is None:
        usage_error(f"--output is '{args.output}': expected a .npy or a .jsonl file")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    # Imported here because the import is slow and needed only on a terminal.
    from huggingface_hub.utils import tqdm

    with tqdm(unit=" tokens", unit_scale=True, file=sys.stderr) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_progress


def _summary(encoded: Encoded, limit: int, seconds: float, output: Path) -> str:
    tokens = int(np.where(encoded.truncated, limit, encoded.tokens).sum(dtype=np.int64))
    rate = f"{tokens / seconds:,.0f}" if seconds else "-"
    return (
        f"{counted(len(encoded.tokens), 'text')}, {tokens:,} tokens in {seconds:.1f} s ({rate} tokens/s), "
        f"{int(encoded.truncated.sum()):,} truncated at {limit}, "
        f"{int(encoded.composed.sum()):,} normalized to NFC: {output}"
    )
