"""Write an XLM-R checkpoint with random weights, to measure speed, size and memory without the Hub.

python -m benchmarks checkpoint build/large --size large --tokenizer tokenizer.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from koe5_export.seeded import SIZES, write_seeded_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder; must not exist")
    parser.add_argument(
        "--size", choices=SIZES, default="tiny", help="large has KoE5's exact dimensions, 2.2 GB"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same weights")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json (default: a small tokenizer)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint.

    Raises:
        InputError: The folder exists, or the tokenizer does not fit the model.
    """
    write_seeded_checkpoint(args.out, args.size, args.seed, args.tokenizer)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {args.size}, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(["checkpoint", *sys.argv[1:]]))
