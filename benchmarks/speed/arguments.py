"""Options that most speed benchmarks share, and their validation."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders.prepared import Store
from benchmarks.contenders.registry import CONTENDERS, OWN, Contender, chosen
from benchmarks.speed.texts import CORPORA, Corpus, read_corpora
from koe5_onnx import InputError
from koe5_onnx.engine.machine import usable_cores


@dataclass(frozen=True)
class Setting:
    """Validated settings from the command line."""

    store: Store
    contenders: list[Contender]
    corpora: list[Corpus]
    threads: int
    json: Path | None


def add_arguments(
    parser: argparse.ArgumentParser,
    *,
    rounds: int,
    corpora: tuple[str, ...] = CORPORA,
    contenders: Sequence[str] = tuple(CONTENDERS),
) -> None:
    """Declare the shared options; `rounds` is the default of --rounds."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="C", help="checkpoint folder")
    parser.add_argument(
        "--artifact",
        action="append",
        default=[],
        metavar="PRECISION=FOLDER",
        help="use this existing artifact; artifacts of other precisions are exported; repeatable",
    )
    add_cache(parser)
    parser.add_argument(
        "--contender",
        action="append",
        choices=contenders,
        help="repeatable (default: all that use the checkpoint's weights)",
    )
    parser.add_argument("--corpus", action="append", choices=corpora, help="repeatable (default: all)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder with korsts/ and autorag_ko/")
    parser.add_argument("--texts", type=int, metavar="N", help="number of texts per corpus")
    parser.add_argument("--rounds", type=int, default=rounds, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="default: number of usable cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to FILE")
    parser.set_defaults(corpora=corpora)


def setting_of(args: argparse.Namespace, among: Mapping[str, Contender] = CONTENDERS) -> Setting:
    """Check the shared options and return them as settings. --contender must name members of `among`.

    Raises:
        InputError: An option is out of range or names something unknown.
    """
    for name in ("rounds", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}, expected at least 1")
    tokenizer = args.checkpoint / "tokenizer.json"
    if not tokenizer.is_file():
        raise InputError(f"{args.checkpoint} has no tokenizer.json. Pass the folder of a checkpoint")
    environment = OWN if among is not CONTENDERS else "contenders"
    store = Store(args.checkpoint, args.cache, artifacts_of(args.artifact), environment)
    corpora = read_corpora(args.corpus or args.corpora, args.data, tokenizer, args.texts)
    threads = args.threads or usable_cores().count
    return Setting(store, chosen(args.contender, among), corpora, threads, args.json)


def artifacts_of(given: list[str]) -> dict[str, Path]:
    """Parse PRECISION=FOLDER arguments.

    Raises:
        InputError: An argument does not have this form.
    """
    found: dict[str, Path] = {}
    for one in given:
        precision, equals, folder = one.partition("=")
        if not (precision and equals and folder):
            raise InputError(f"--artifact is {one!r}, expected PRECISION=FOLDER")
        found[precision] = Path(folder)
    return found


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Declare --cache, which the quality benchmark also has."""
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("build/benchmarks"),
        metavar="FOLDER",
        help="folder for the contenders' files (default: %(default)s)",
    )
