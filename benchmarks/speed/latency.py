"""Measure the latency of one query in consecutive calls, and the CPU use of idle contenders."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from benchmarks.speed import arguments
from benchmarks.speed.arguments import Setting, setting_of
from benchmarks.speed.opened import Field, open_field
from benchmarks.speed.results import head, write_json
from benchmarks.speed.statistics import percentile, rotated
from benchmarks.speed.texts import queries_of
from koe5_onnx import InputError

QUERY_TOKENS = (29, 55)
"""Minimum and maximum number of tokens of the query."""
_WARM_UP_CALLS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    arguments.add_arguments(parser, rounds=10, corpora=("short",))
    parser.add_argument(
        "--calls", type=int, default=500, metavar="N", help="calls per contender (default: %(default)s)"
    )
    parser.add_argument(
        "--idle-seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="time over which idle CPU use is measured (default: %(default)s); 0 skips this measurement",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print. The exit code is 1 if a contender is wrong."""
    if args.calls < args.rounds:
        raise InputError(f"--calls is {args.calls}, expected at least {args.rounds}, one per round")
    setting = setting_of(args)
    query = query_of(setting)
    with open_field(setting) as field:
        milliseconds = measure(field, query, args.calls, args.rounds)
        idle = _idle(field, args.idle_seconds)
        result = _result(setting, field, query, milliseconds, idle)
    print(table(result))
    if setting.json is not None:
        write_json(setting.json, result)
    return 1 if field.wrong else 0


def query_of(setting: Setting) -> str:
    """Return the query with the median number of characters among those with `QUERY_TOKENS` tokens."""
    found = sorted(queries_of(setting.corpora[0], *QUERY_TOKENS), key=len)
    return found[len(found) // 2]


def measure(field: Field, query: str, calls: int, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of `calls` calls per contender, distributed evenly over the rounds."""
    found: dict[str, list[float]] = {name: [] for name in field.opened}
    for turn in range(rounds):
        share = calls // rounds + (turn < calls % rounds)
        for name in rotated(list(found), turn):
            worker = field.opened[name].worker
            worker.ask("repeat", text=query, calls=_WARM_UP_CALLS)
            seconds = worker.ask("repeat", text=query, calls=share)["seconds"]
            found[name] += [1000 * one for one in seconds]
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return found


def _idle(field: Field, seconds: float) -> dict[str, float]:
    """Return the share of one core that each idle process uses; empty if `seconds` is 0."""
    if seconds <= 0:
        return {}
    time.sleep(1.0)  # libraries' threads spin for a moment after the last call
    before = {name: opened.worker.cpu_seconds() for name, opened in field.opened.items()}
    time.sleep(seconds)
    return {
        name: (opened.worker.cpu_seconds() - before[name]) / seconds for name, opened in field.opened.items()
    }


def _result(
    setting: Setting,
    field: Field,
    query: str,
    milliseconds: dict[str, list[float]],
    idle: dict[str, float],
) -> dict[str, Any]:
    result = head("latency", setting.threads, setting.store.checkpoint)
    corpus = setting.corpora[0]
    result["query_tokens"] = corpus.lengths[corpus.texts.index(query)]
    result["contenders"] = {name: opened.describe() for name, opened in field.opened.items()}
    result["wrong"] = field.wrong
    result["latency_ms"] = figures(milliseconds, idle)
    return result


def figures(milliseconds: dict[str, list[float]], idle: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return the percentiles, all latencies and the idle CPU use (None if not measured) by contender."""
    found = {}
    for name, calls in milliseconds.items():
        p50, p90, p99 = (percentile(calls, share) for share in (0.5, 0.9, 0.99))
        found[name] = {
            "p50": p50,
            "p90": p90,
            "p99": p99,
            "p99_to_p50": p99 / p50,
            "calls": calls,
            "idle_cpu": idle.get(name),
        }
    return found


def table(result: dict[str, Any]) -> str:
    """Format the result for a terminal."""
    lines = [
        f"{result['machine']['cpu']}, {result['threads']} threads; "
        f"a query of {result['query_tokens']} tokens",
        f"{'':28}{'p50 ms':>8}{'p90':>8}{'p99':>8}{'p99/p50':>9}{'idle CPU':>10}",
    ]
    for name, one in result["latency_ms"].items():
        idle = "" if one["idle_cpu"] is None else f"{one['idle_cpu']:.2%}"
        lines.append(
            f"{name:28}{one['p50']:8.1f}{one['p90']:8.1f}{one['p99']:8.1f}{one['p99_to_p50']:9.2f}{idle:>10}"
        )
    lines += [f"{name} is wrong, not timed: {fault}" for name, fault in result["wrong"].items()]
    return "\n".join(lines)
