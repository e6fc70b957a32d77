"""koe5-onnx bulk: files of texts to a folder of parquet files with embeddings; started again, it goes on.

koe5_onnx.bulk does the work; this is its arguments, a bar and the last line.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koe5_onnx.cli.engine_arguments import (
    add_engine_arguments,
    add_text_arguments,
    engine_options,
    prompt_of,
)

if TYPE_CHECKING:
    from koe5_onnx.bulk import Progress, RayOptions, Summary

_LINE_SECONDS = 60
"""Between two lines of progress where no terminal is."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb and its arguments."""
    parser = verbs.add_parser(
        "bulk",
        help="embed files of any size into parquet, resumable, on one machine or a Ray cluster",
        description="Embed a column of parquet, JSON-lines or CSV files into a folder of parquet files that "
        "keeps all other columns. Killed and started again with the same command, it goes on where it was. "
        "Bad rows are in OUT/_errors.jsonl; OUT/_SUCCESS is there once all is done.",
    )
    parser.set_defaults(run=run, usage_error=parser.error)
    parser.add_argument(
        "input", metavar="IN", type=Path, help="a file or folder: .parquet, .jsonl[.gz], .csv[.gz]"
    )
    parser.add_argument("output", metavar="OUT", type=Path, help="a folder for this job alone")
    add_text_arguments(parser)
    _add_rows(parser.add_argument_group("rows"))
    _add_engine(parser.add_argument_group("engine"))


def _add_rows(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--text-column", default="text", metavar="NAME", help='default: "text"')
    group.add_argument("--embedding-column", default="embedding", metavar="NAME", help='default: "embedding"')
    group.add_argument(
        "--output-dtype",
        default="float32",
        choices=("float32", "float16", "int8", "binary"),
        help="of the embeddings; the README says what each costs in retrieval",
    )
    group.add_argument(
        "--shard-rows", type=int, metavar="N", help="rows of one file of OUT, and what a kill may cost"
    )
    group.add_argument("--strict", action="store_true", help="stop at the first bad row")
    group.add_argument("--restart", action="store_true", help="drop what OUT holds of an earlier job")


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--engine", default="local", choices=("local", "ray"), help="this process, or Ray")
    add_engine_arguments(group, parallel_batches=None)
    group.add_argument(
        "--ray-address", metavar="A", help="of a running cluster, or auto (default: start one here)"
    )
    group.add_argument("--ray-actors", type=int, metavar="N", help="actors at most (default: 1)")
    group.add_argument("--ray-cpus-per-actor", type=float, metavar="N", help="cores of each (default: 1)")
    group.add_argument("--ray-gpus-per-actor", type=float, metavar="N", help="GPUs of each (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Embed the input and return the exit code.

    Raises:
        Koe5Error: The input, the output, the artifact or the device cannot be used.
        OSError: A file cannot be read or written.
    """
    from koe5_onnx.bulk import BulkOptions, embed_files

    options = BulkOptions(
        **prompt_of(args),
        text_column=args.text_column,
        embedding_column=args.embedding_column,
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
            restart=args.restart,
            ray=ray,
            on_progress=on_progress,
        )
    print(_words(summary, args.output), file=sys.stderr)
    return 0


def _ray_options(args: argparse.Namespace) -> RayOptions | None:
    """The options of the engine ray; ends with a usage error where they are given without it."""
    from koe5_onnx.bulk import RayOptions

    names = ("address", "actors", "cpus_per_actor", "gpus_per_actor")
    given = {name: value for name in names if (value := getattr(args, f"ray_{name}")) is not None}
    if args.engine == "ray":
        return RayOptions(**given)
    if given:
        args.usage_error(f"--ray-{next(iter(given)).replace('_', '-')} is for --engine ray")
    return None


@contextmanager
def _hint_where_stopped() -> Iterator[None]:
    """Say after Ctrl-C or SIGTERM that nothing is lost."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print("koe5-onnx: stopped; the same command goes on with the next shard", file=sys.stderr)
        raise


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """A bar in tokens on a terminal; elsewhere a line a minute."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    # A dependency of huggingface_hub; slow to import, so only where it is seen.
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
    """Writes how far it is, a line a minute."""

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
    """An estimate by rows, as the rest is not tokenized yet."""
    if not progress.rows:
        return None
    return max(progress.tokens, round(progress.tokens * progress.total_rows / progress.rows))


def _words(summary: Summary, output: Path) -> str:
    before = f", {summary.shards_before:,} of them before" if summary.shards_before else ""
    bad = f"{summary.bad_rows:,} bad rows in _errors.jsonl" if summary.bad_rows else "no bad rows"
    return (
        f"{summary.rows:,} rows in {summary.shards:,} shards{before}, {bad}, "
        f"{summary.truncated:,} truncated, {summary.composed:,} composed, "
        f"{summary.tokens - summary.tokens_before:,} tokens in {summary.seconds:.1f} s "
        f"({summary.tokens_per_second:,.0f} tokens/s): {output}"
    )
