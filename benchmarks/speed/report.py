"""Results of the speed benchmarks as one HTML page, and as the README's table."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders.registry import CONTENDERS
from benchmarks.speed.results import read_result, write_text
from benchmarks.speed.sections import SECTIONS, conditions, section
from benchmarks.speed.texts import CORPORA
from koe5_onnx import InputError

BEGIN, END = "<!-- speed table: begin -->", "<!-- speed table: end -->"
"""Between these two lines of the README stands what `--readme` writes."""
Result = Mapping[str, Any]
_NONE = "–"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 860px; margin: 2em auto; padding: 0 1em; }
img { width: 100%; }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0; } .wrong { color: #d55e00; }
td, th { padding: .2em .6em; border-bottom: 1px solid #d8d8de; text-align: right; }
td:first-child, th:first-child { text-align: left; }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="results, as --json wrote them")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page there")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="renew the table between its two marks")


def run(args: argparse.Namespace) -> int:
    """Write what is asked for, and print the table.

    Raises:
        InputError: A file is no result, or the README lacks the marks.
    """
    results = [read_result(file) for file in args.files]
    for file, result in zip(args.files, results, strict=True):
        if result.get("benchmark") not in SECTIONS:
            raise InputError(
                f"{file} is of {result.get('benchmark')!r}: expected one of {', '.join(SECTIONS)}"
            )
    text = readme_tables([result for result in results if result["benchmark"] != "gpu"])
    print(text)
    if args.out is not None:
        write_text(args.out, page(results))
    if args.readme is not None:
        write_text(args.readme, between_marks(args.readme, text))
    return 0


def page(results: Sequence[Result]) -> str:
    """A page that needs nothing beside itself."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>koe5-onnx: speed</title>',
            '<meta name="viewport" content="width=device-width">',
            f"<style>{_STYLE}</style></head><body>",
            "<h1>koe5-onnx: speed</h1>",
            *map(section, results),
            "</body></html>\n",
        ]
    )


def readme_tables(results: Sequence[Result]) -> str:
    """A table a machine, in the order of the files; empty for no results."""
    machines = dict.fromkeys(result["machine"]["cpu"] for result in results)
    return "\n\n".join(readme_table([r for r in results if r["machine"]["cpu"] == cpu]) for cpu in machines)


def readme_table(results: Sequence[Result]) -> str:
    """Markdown: a row a contender; of a figure in several results the first one's. Empty for none."""
    if not results:
        return ""
    names = [name for name in CONTENDERS if any(name in result["contenders"] for result in results)]
    baseline = next((r["baseline"] for r in results if r["benchmark"] == "throughput"), None)
    ratio = f" (to {baseline})" if baseline else ""
    head = [
        "",
        *(f"{corpus}, tokens/s{ratio}" for corpus in CORPORA),
        "query p50, ms",
        "peak MiB",
        "cold start, s",
    ]
    rows = [_row(results, name) for name in names]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    under = next((conditions(r) for r in results if r["benchmark"] == "throughput"), conditions(results[0]))
    shares = _ceiling(results)
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", f"{under}.{shares}"])


def _row(results: Sequence[Result], name: str) -> list[str]:
    cells = [f"**{name}**" if CONTENDERS[name].is_ours else name]
    cells += [_rate(results, name, corpus) for corpus in CORPORA]
    latency = _first(results, "latency", "latency_ms", name)
    memory = _first(results, "memory", "memory", name)
    start = _first(results, "coldstart", "coldstart_seconds", name)
    return [
        *cells,
        _NONE if latency is None else f"{latency['p50']:.1f}",
        _NONE if memory is None else f"{memory['peak_rss_bytes'] / 2**20:,.0f}",
        _NONE if start is None else f"{start['total']['median']:.2f}",
    ]


def _rate(results: Sequence[Result], name: str, corpus: str) -> str:
    for result in results:
        if result["benchmark"] == "throughput" and corpus in result["corpora"]:
            one = result["corpora"][corpus]["tokens_per_second"].get(name)
            if one is not None:
                return f"{one['median']:,.0f}" + ("" if one["ratio"] is None else f" ({one['ratio']:.2f}x)")
    return _NONE


def _first(results: Sequence[Result], benchmark: str, key: str, name: str) -> Mapping[str, Any] | None:
    return next((r[key][name] for r in results if r["benchmark"] == benchmark and name in r[key]), None)


def _ceiling(results: Sequence[Result]) -> str:
    for result in results:
        if result["benchmark"] == "throughput":
            rate = result["ceiling"]["stock"]["median"]
            return f" The int8 GEMM ceiling of ONNX Runtime there: {rate:,.0f} tokens/s."
    return ""


def between_marks(file: Path, text: str) -> str:
    """The file's text with `text` between the marks.

    Raises:
        InputError: The marks are not there once each and in order.
    """
    before = file.read_text(encoding="utf-8")
    if before.count(BEGIN) != 1 or before.count(END) != 1 or before.index(BEGIN) > before.index(END):
        raise InputError(f"{file}: expected the line {BEGIN} and after it {END}, once each")
    start, end = before.index(BEGIN) + len(BEGIN), before.index(END)
    return f"{before[:start]}\n\n{text}\n\n{before[end:]}"
