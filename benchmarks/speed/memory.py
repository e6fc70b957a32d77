"""Measure the resident memory of each contender, and its growth for this project's contenders."""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace
from typing import Any

from benchmarks.contenders.process import ContenderProcess
from benchmarks.speed import arguments
from benchmarks.speed.arguments import Setting, setting_of
from benchmarks.speed.opened import Opened, choose_batches, open_field
from benchmarks.speed.results import head, write_json
from benchmarks.speed.texts import MAX_TOKENS
from koe5_onnx import InputError

_SETTLED = 200
"""Number of batch shapes after which memory should no longer grow."""
_BUDGET_TOKENS = 2048
"""Maximum number of tokens per call of random shape."""
_MEBIBYTE = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    arguments.add_arguments(parser, rounds=1)
    parser.add_argument(
        "--shapes",
        type=int,
        default=2000,
        metavar="N",
        help=f"random batch shapes for measuring growth; 0 or more than {_SETTLED} (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print. The exit code is 1 if a contender is wrong."""
    if args.shapes and args.shapes <= _SETTLED:
        raise InputError(f"--shapes is {args.shapes}, expected 0 or more than {_SETTLED}")
    setting = setting_of(args)
    result = head("memory", setting.threads, setting.store.checkpoint)
    result |= {"memory": {}, "contenders": {}, "wrong": {}}
    for contender in setting.contenders:
        with open_field(replace(setting, contenders=[contender])) as field:
            result["wrong"] |= field.wrong
            for name, opened in field.opened.items():
                result["memory"][name] = _measure(setting, opened, args.rounds, args.shapes)
                result["contenders"][name] = opened.describe()
    print(table(result))
    if setting.json is not None:
        write_json(setting.json, result)
    return 1 if result["wrong"] else 0


def _measure(setting: Setting, opened: Opened, rounds: int, shapes: int) -> dict[str, Any]:
    """Measure a contender's memory in a new process, which embeds each corpus with its fastest batch size."""
    choose_batches(opened, setting.corpora, setting.store.own, setting.threads)
    opened.worker.close()
    with ContenderProcess(
        opened.contender, opened.files, setting.store.checkpoint, setting.threads
    ) as worker:
        worker.ask("load")
        worker.ask("open")
        after_opening = worker.memory()
        for _ in range(rounds):
            for corpus in setting.corpora:
                worker.ask("embed", texts=corpus.texts, batch=opened.batch[corpus.name])
        now = worker.memory()
        print(f"{opened.contender.name}: peak {now.peak_rss_bytes / _MEBIBYTE:,.0f} MiB", file=sys.stderr)
        found: dict[str, Any] = {
            "opened_rss_bytes": after_opening.rss_bytes,
            "rss_bytes": now.rss_bytes,
            "peak_rss_bytes": now.peak_rss_bytes,
            "anonymous_bytes": now.anonymous_bytes,
            "file_bytes": now.file_bytes,
        }
        if shapes and opened.contender.is_ours:
            found |= _growth(worker, setting, shapes)
        return found


def _growth(worker: ContenderProcess, setting: Setting, shapes: int) -> dict[str, Any]:
    """Return the memory after `_SETTLED` batches of random shape and after all of them, and its growth."""
    source = max((text for corpus in setting.corpora for text in corpus.texts), key=len)
    chance = random.Random(0)  # noqa: S311 - reproducible shapes, not a secret
    settled = 0
    for turn in range(1, shapes + 1):
        worker.ask("embed", texts=random_texts(chance, source))
        if turn == _SETTLED:
            settled = worker.memory().rss_bytes
    end = worker.memory()
    return {
        "shapes": shapes,
        "settled_rss_bytes": settled,
        "end_rss_bytes": end.rss_bytes,
        "growth": end.rss_bytes / settled - 1,
        "end_peak_rss_bytes": end.peak_rss_bytes,
    }


def random_texts(chance: random.Random, source: str) -> list[str]:
    """Return texts of equal length for a batch of random shape, at most `_BUDGET_TOKENS` characters in total.

    A character is at most about one token, so the limit also holds for tokens.
    """
    length = chance.randint(1, MAX_TOKENS)
    rows = chance.randint(1, max(1, _BUDGET_TOKENS // length))
    repeated = source * (1 + MAX_TOKENS // len(source))
    return [repeated[row : row + length] for row in range(rows)]


def table(result: dict[str, Any]) -> str:
    """Format the result for a terminal."""
    lines = [f"{'MiB':28}{'opened':>8}{'peak':>8}{'private':>9}{'files':>8}{'growth':>8}"]
    for name, one in result["memory"].items():
        columns = ("opened_rss_bytes", "peak_rss_bytes", "anonymous_bytes", "file_bytes")
        opened, peak, private, files = (one[column] / _MEBIBYTE for column in columns)
        growth = f"{one['growth']:+.1%}" if "growth" in one else ""
        lines.append(f"{name:28}{opened:8,.0f}{peak:8,.0f}{private:9,.0f}{files:8,.0f}{growth:>8}")
    lines += [f"{name} is wrong, not measured: {fault}" for name, fault in result["wrong"].items()]
    return "\n".join(lines)
