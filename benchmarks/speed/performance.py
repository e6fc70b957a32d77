"""Write the marked tables of docs/performance.md and the speed chart from the committed results."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.contenders.registry import CONTENDERS, ROOT
from benchmarks.speed.bars import Bar, Panel, chart
from benchmarks.speed.results import write_text
from benchmarks.speed.tables import MACHINES, Result, speeds, tables, throughput, undisturbed
from koe5_onnx import InputError

PAGE = ROOT / "docs/performance.md"
CHART = ROOT / "docs/images/speed.svg"
CHART_CORPUS = "mix"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="page with the marked tables")
    parser.add_argument("--chart", type=Path, default=CHART, metavar="FILE", help="SVG file of the chart")


def run(args: argparse.Namespace) -> int:
    """Update the page and write the chart.

    Raises:
        InputError: A result cannot be read, or a table's marks are missing from the page.
    """
    text = updated(args.page.read_text(encoding="utf-8"), tables(), str(args.page))
    write_text(args.chart, speed_chart(speeds()).decode("utf-8"))
    write_text(args.page, text)
    return 0


def updated(text: str, found: Mapping[str, str], page: str) -> str:
    """Return the text of `page` with each table of `found` between its two marks.

    Raises:
        InputError: A table's marks are not in the text exactly once and in order.
    """
    for name, table in found.items():
        begin, end = f"<!-- table {name}: begin -->", f"<!-- table {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise InputError(f"{page} must have the lines {begin} and {end} once each, in this order")
        start, stop = text.index(begin) + len(begin), text.index(end)
        text = f"{text[:start]}\n\n{table}\n\n{text[stop:]}"
    return text


def speed_chart(machines: Mapping[str, Sequence[Result]]) -> bytes:
    """Return the SVG chart: tokens per second by system, without disturbed results, one panel per machine."""
    panels = []
    for machine, results in machines.items():
        found = {name: throughput(undisturbed(results), name, CHART_CORPUS) for name in CONTENDERS}
        timed = {name: one for name, one in found.items() if one is not None}
        bars = [
            Bar(name, one["median"], one["min"], one["max"], CONTENDERS[name].is_ours)
            for name, one in sorted(timed.items(), key=lambda item: -item[1]["median"])
        ]
        panels.append(Panel(f"{MACHINES[machine]}, 2 cores", bars))
    return chart("Tokens per second, short and long Korean texts mixed", panels)
