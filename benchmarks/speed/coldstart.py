"""Measure the seconds from the start of a process to its first embedding, with files in the page cache."""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.contenders.process import ContenderProcess
from benchmarks.contenders.registry import Contender
from benchmarks.speed import arguments
from benchmarks.speed.arguments import Setting, setting_of
from benchmarks.speed.opened import open_field
from benchmarks.speed.results import head, write_json
from benchmarks.speed.statistics import rotated, spread

STEPS = ("import", "open", "first", "total")
"""Time to start the process and import the library, to open the contender and to embed the first text, and
their total."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    arguments.add_arguments(parser, rounds=5, corpora=("short",))


def run(args: argparse.Namespace) -> int:
    """Measure and print. The exit code is 1 if a contender is wrong."""
    setting = setting_of(args)
    result = head("coldstart", setting.threads, setting.store.checkpoint)
    with open_field(setting) as field:  # also fills the page cache
        files = {name: opened.files for name, opened in field.opened.items()}
        result["contenders"] = {name: opened.describe() for name, opened in field.opened.items()}
        result["wrong"] = field.wrong
    seconds = _measure(setting, files, args.rounds)
    result["coldstart_seconds"] = {
        name: {step: spread([one[step] for one in starts]) for step in STEPS}
        for name, starts in seconds.items()
    }
    print(table(result))
    if setting.json is not None:
        write_json(setting.json, result)
    return 1 if result["wrong"] else 0


def _measure(setting: Setting, files: dict[str, Path], rounds: int) -> dict[str, list[dict[str, float]]]:
    contenders = {one.name: one for one in setting.contenders if one.name in files}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in rotated(list(contenders), turn):
            start = _start(setting, contenders[name], files[name])
            print(f"round {turn + 1}, {name}: {start['total']:.2f} s", file=sys.stderr)
            found[name].append(start)
    return found


def _start(setting: Setting, contender: Contender, files: Path) -> dict[str, float]:
    """Return the seconds of each step in a new process, which reads the same monotonic clock as this one."""
    with ContenderProcess(contender, files, setting.store.checkpoint, setting.threads) as worker:
        loaded = worker.ask("load")["at"]
        opened = worker.ask("open")["at"]
        first = worker.ask("embed", texts=setting.corpora[0].texts[:1])["at"]
        marks = (worker.started_at, loaded, opened, first)
    steps = [after - before for before, after in pairwise(marks)]
    return dict(zip(STEPS, [*steps, sum(steps)], strict=True))


def table(result: dict[str, Any]) -> str:
    """Format the result for a terminal."""
    lines = [f"{'seconds, median':28}" + "".join(f"{step:>8}" for step in STEPS)]
    for name, one in result["coldstart_seconds"].items():
        lines.append(f"{name:28}" + "".join(f"{one[step]['median']:8.2f}" for step in STEPS))
    lines += [f"{name} is wrong, not timed: {fault}" for name, fault in result["wrong"].items()]
    return "\n".join(lines)
