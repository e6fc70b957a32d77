"""koe5-onnx bulk: embed files of texts into a folder of parquet or other files, and resume interrupted jobs.

This module has the arguments, the progress bar and the summary line. koe5_onnx.bulk does the work.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from koe5_onnx.cli.engine_arguments import (
    add_encoding,
    add_engine_arguments,
    add_text_arguments,
    engine_options,
    prompt_of,
)
from koe5_onnx.cli.report import counted

if TYPE_CHECKING:
    from koe5_onnx.bulk import Progress, RayOptions, Summary

_LINE_SECONDS = 60
"""Minimum seconds between progress lines if stderr is not a terminal."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its arguments."""
    parser = verbs.add_parser(
        "bulk",
        help="embed files of any size, resumable, on one machine or a Ray cluster",
        description="Embed the texts of parquet, Arrow, JSON lines or CSV files and write files with all "
        "columns of the input and the embeddings. Run the same command again to resume an interrupted job. "
        "OUT/_errors.jsonl has the bad rows. OUT/_SUCCESS exists when the job is complete.",
    )
    parser.set_defaults(run=run, usage_error=parser.error)
    parser.add_argument(
        "input",
        metavar="IN",
        help="a file or folder, or its URL (s3://, gs://, hf://, https://): .parquet, .arrow, .feather, "
        ".ipc, or .jsonl, .ndjson, .json, .csv, .tsv, also with .gz or .zst",
    )
    parser.add_argument(
        "output", metavar="OUT", help="an output folder for this job only, or its URL (s3://, gs://, hf://)"
    )
    add_text_arguments(parser)
    _add_rows(parser.add_argument_group("rows"))
    _add_engine(parser.add_argument_group("engine"))


def _add_rows(group: argparse._ArgumentGroup) -> None:
    text = group.add_mutually_exclusive_group()
    text.add_argument(
        "--text-column",
        default="text",
        metavar="NAME",
        help='name of the text column, or a.b for the field b of the struct a (default: "text")',
    )
    text.add_argument(
        "--text-template",
        type=_unescaped,
        metavar="TEXT",
        help=r"text with column names in braces, such as '{title}\n{body}', instead of a text column",
    )
    add_encoding(group)
    group.add_argument(
        "--csv-delimiter",
        type=_unescaped,
        metavar="C",
        help=r"character between CSV fields, such as ';' or '\t' (default: tab in .tsv files, else comma)",
    )
    group.add_argument(
        "--csv-quote",
        default='"',
        metavar="C",
        help="character around CSV fields, '' if there is none (default: \")",
    )
    group.add_argument(
        "--csv-escape",
        metavar="C",
        help=r"character before quotes in CSV fields, '\' in files of Spark (default: quotes are doubled)",
    )
    group.add_argument(
        "--embedding-column",
        default="embedding",
        metavar="NAME",
        help='name of the embedding column (default: "embedding")',
    )
    group.add_argument(
        "--output-format",
        default="parquet",
        choices=("parquet", "jsonl", "npy", "lance"),
        help="format of the output: parquet, JSON lines, vectors as .npy next to parquet, or a Lance dataset "
        "(default: parquet)",
    )
    group.add_argument(
        "--output-dtype",
        default="float32",
        choices=("float32", "float16", "int8", "binary"),
        help="dtype of the embeddings; docs/scale.md compares their retrieval quality (default: float32)",
    )
    group.add_argument(
        "--shard-rows",
        type=int,
        metavar="N",
        help="input rows per output file (default: 1024); an interruption loses at most the work on one file "
        "per process",
    )
    group.add_argument("--strict", action="store_true", help="stop at the first bad row")
    group.add_argument(
        "--max-bad-share",
        type=float,
        metavar="SHARE",
        help="stop if a larger share of the rows is bad; 1 allows all (default: 0.5)",
    )
    group.add_argument(
        "--dedupe",
        action="store_true",
        help="embed equal texts once, if the earlier result is among the latest 128 MiB of results",
    )
    group.add_argument("--restart", action="store_true", help="delete an earlier job in OUT and start again")


def _unescaped(value: str) -> str:
    """Return an argument with the escapes for tab and line feed replaced."""
    return value.replace("\\t", "\t").replace("\\n", "\n")


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--engine", default="local", choices=("local", "ray"), help="run in this process or on Ray"
    )
    add_engine_arguments(group, parallel_batches=None)
    group.add_argument(
        "--ray-address",
        metavar="A",
        help="address of a running cluster, or auto (default: RAY_ADDRESS, or start Ray on this machine)",
    )
    group.add_argument("--ray-actors", type=int, metavar="N", help="maximum number of actors (default: 1)")
    group.add_argument("--ray-cpus-per-actor", type=float, metavar="N", help="cores per actor (default: 1)")
    group.add_argument("--ray-gpus-per-actor", type=float, metavar="N", help="GPUs per actor (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Embed the input and return the exit code.

    Raises:
        Koe5Error: The input, the output or the artifact is invalid, or the device cannot run the artifact.
        OSError: A file cannot be read or written.
    """
    from koe5_onnx.bulk import BulkOptions, Dialect, embed_files

    options = BulkOptions(
        **prompt_of(args),
        text_column=args.text_column,
        text_template=args.text_template,
        encoding=args.encoding,
        csv=Dialect(args.csv_delimiter, args.csv_quote, args.csv_escape),
        embedding_column=args.embedding_column,
        output_format=args.output_format,
        output_dtype=args.output_dtype,
        dim=args.dim,
        **({} if args.shard_rows is None else {"shard_rows": args.shard_rows}),
    )
    ray = _ray_options(args)
    with _progress() as on_progress, _hint_where_stopped():
        summary = embed_files(
            args.input,
            args.output,
            args.artifact,
            options,
            engine=engine_options(args),
            strict=args.strict,
            **({} if args.max_bad_share is None else {"max_bad_share": args.max_bad_share}),
            dedupe=args.dedupe,
            restart=args.restart,
            ray=ray,
            on_progress=on_progress,
        )
    print(_words(summary, args.output), file=sys.stderr)
    return 0


def _ray_options(args: argparse.Namespace) -> RayOptions | None:
    """Return the options --ray-*; None for the local engine, with which they are a usage error."""
    from koe5_onnx.bulk import RayOptions

    names = ("address", "actors", "cpus_per_actor", "gpus_per_actor")
    given = {name: value for name in names if (value := getattr(args, f"ray_{name}")) is not None}
    if args.engine == "ray":
        return RayOptions(**given)
    if given:
        args.usage_error(f"--ray-{next(iter(given)).replace('_', '-')} requires --engine ray")
    return None


@contextmanager
def _hint_where_stopped() -> Iterator[None]:
    """Context manager that prints how to resume the job after Ctrl-C or SIGTERM."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        advice = "Run the same command to resume the job, without --restart"
        print(f"koe5-onnx: stopped. {advice}", file=sys.stderr)
        raise


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar on a terminal; otherwise print at most one line per minute."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    # Imported here because the import is slow and needed only on a terminal.
    from huggingface_hub.utils import tqdm

    bar: Any = None

    def on_progress(progress: Progress) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(initial=progress.tokens, unit=" tokens", unit_scale=True, file=sys.stderr)
        bar.total = _total_tokens(progress)
        bar.update(progress.tokens - bar.n)

    try:
        yield on_progress
    finally:
        if bar is not None:
            bar.close()


class _Lines:
    def __init__(self) -> None:
        self._first: Progress | None = None
        self._start = self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._start, self._last = progress, now, now
        if now - self._last >= _LINE_SECONDS:
            self._last = now
            rate = (progress.tokens - self._first.tokens) / (now - self._start)
            left = ((_total_tokens(progress) or 0) - progress.tokens) / max(rate, 1e-9)
            rows = f"{progress.rows:,} of {progress.total_rows:,} rows"
            print(f"{rows}, {rate:,.0f} tokens/s, about {left / 60:,.0f} min left", file=sys.stderr)


def _total_tokens(progress: Progress) -> int | None:
    """Estimate the total number of tokens from the finished rows; None before the first row."""
    if not progress.rows:
        return None
    return max(progress.tokens, round(progress.tokens * progress.total_rows / progress.rows))


def _words(summary: Summary, output: str) -> str:
    before = f", {summary.shards_before:,} of them by earlier runs" if summary.shards_before else ""
    bad = f"{counted(summary.bad_rows, 'bad row')} in _errors.jsonl" if summary.bad_rows else "no bad rows"
    repeated = f"{summary.repeated:,} repeated, " if summary.repeated else ""
    tokens = summary.tokens - summary.tokens_before
    speed = f"{tokens:,} tokens in {summary.seconds:.1f} s ({summary.tokens_per_second:,.0f} tokens/s)"
    return (
        f"{counted(summary.rows, 'row')} in {counted(summary.shards, 'shard')}{before}, {bad}, "
        f"{summary.truncated:,} truncated, {summary.composed:,} normalized to NFC, {repeated}"
        f"{speed if tokens else 'nothing was left to embed'}: {output}"
    )
