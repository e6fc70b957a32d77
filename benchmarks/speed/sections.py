"""What the page of a report shows of each kind of result: drawings, and a table with every figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.contenders.registry import CONTENDERS, gpu_contenders
from benchmarks.speed.bars import Bar, Mark, draw
from benchmarks.speed.coldstart import STEPS

Result = Mapping[str, Any]
_MEBIBYTE = 2**20


def section(result: Result) -> str:
    """One result as HTML."""
    benchmark = result["benchmark"]
    head = [f"<h2>{escape(benchmark)}</h2>", f"<p>{escape(conditions(result))}</p>"]
    wrong = [
        f'<p class="wrong">{escape(name)} is wrong and was not timed: {escape(fault)}</p>'
        for name, fault in result["wrong"].items()
    ]
    return "\n".join([*head, *SECTIONS[benchmark](result), *wrong, _versions(result)])


def conditions(result: Result) -> str:
    """Where and when, on one line."""
    machine = result["machine"]
    return (
        f"{result['checkpoint']}, {result['threads']} threads on {machine['cpu']} "
        f"({machine['cores']} cores; {', '.join(machine['instructions'])}; {machine['memory_gib']} GiB), "
        f"{result['at']}, commit {result['commit'] or 'unknown'}"
    )


def _throughput(result: Result) -> Iterator[str]:
    # Results of before the GPU's name neither.
    number = result.get("ceiling_of", "int8")
    ceiling = result["ceiling"][result.get("share_of", "stock")]["median"]
    shown = ", ".join(
        f"{kind} {one['median']:,.0f} ({one['min']:,.0f} to {one['max']:,.0f})"
        for kind, one in result["ceiling"].items()
    )
    yield f"<p>{number} GEMM ceiling, tokens/s: {escape(shown)}. Lines: least and most of the rounds.</p>"
    for name, corpus in result["corpora"].items():
        figures = corpus["tokens_per_second"]
        title = f"{name}: {corpus['texts']} texts, {corpus['tokens']:,} tokens; tokens a second, median"
        yield f"<h3>{escape(title)}</h3>"
        bars = [
            Bar(one, [f["median"]], f"{f['median']:,.0f}", f["min"], f["max"], is_ours(one))
            for one, f in figures.items()
        ]
        yield draw(title, bars, Mark(ceiling, f"{number} ceiling"))
        head = [
            "",
            "tokens/s",
            "min",
            "max",
            "texts/s",
            f"to {result['baseline']}",
            "of ceiling",
            "batch",
            "cosine",
        ]
        yield table(head, [_rates(result, name, one, f) for one, f in figures.items()])


def _gpu(result: Result) -> Iterator[str]:
    yield f"<p>{escape(result['gpu'])}</p>"
    yield from _throughput(result)
    yield from _latency(result)
    head = ["fidelity on the device", "texts", "min cosine", "mean", "alone to batch", "gate"]
    rows = [
        [
            name,
            str(one["texts"] or ""),
            *(
                "" if one[key] is None else f"{one[key]:.7f}"
                for key in ("cosine_min", "cosine_mean", "batch_cosine_min")
            ),
            one["fault"] or "passed",
        ]
        for name, one in result["fidelity"].items()
    ]
    yield table(head, rows)


def _rates(result: Result, corpus: str, name: str, one: Mapping[str, Any]) -> list[str]:
    about = result["contenders"][name]
    return [
        name,
        *(f"{one[key]:,.0f}" for key in ("median", "min", "max")),
        f"{one['texts_per_second']:,.1f}",
        "" if one["ratio"] is None else f"{one['ratio']:.2f}",
        f"{one['share_of_ceiling']:.1%}",
        str(about["batch"].get(corpus) or "own"),
        f"{about['cosine_min']:.4f}",
    ]


def _latency(result: Result) -> Iterator[str]:
    found = result["latency_ms"]
    title = f"one query of {result['query_tokens']} tokens: ms, median; line: to the 99th percentile"
    yield f"<h3>{escape(title)}</h3>"
    yield draw(
        title,
        [
            Bar(n, [one["p50"]], f"{one['p50']:.1f}", one["p50"], one["p99"], is_ours(n))
            for n, one in found.items()
        ],
    )
    rows = [
        [
            name,
            *(f"{one[key]:.1f}" for key in ("p50", "p90", "p99")),
            f"{one['p99_to_p50']:.2f}",
            "" if one["idle_cpu"] is None else f"{one['idle_cpu']:.2%}",
            str(len(one["calls"])),
        ]
        for name, one in found.items()
    ]
    yield table(["", "p50 ms", "p90", "p99", "p99 / p50", "idle CPU", "calls"], rows)


def _memory(result: Result) -> Iterator[str]:
    found = result["memory"]
    title = "resident memory after embedding, MiB: private, then mapped from files; line: to the peak"
    yield f"<h3>{escape(title)}</h3>"
    bars = []
    for name, one in found.items():
        private, files, peak = (
            one[key] / _MEBIBYTE for key in ("anonymous_bytes", "file_bytes", "peak_rss_bytes")
        )
        now = private + files
        bars.append(Bar(name, [private, files], f"peak {peak:,.0f}", now, max(peak, now), is_ours(name)))
    yield draw(title, bars)
    columns = ("opened_rss_bytes", "peak_rss_bytes", "anonymous_bytes", "file_bytes")
    rows = [
        [
            name,
            *(f"{one[column] / _MEBIBYTE:,.0f}" for column in columns),
            f"{one['growth']:+.1%} over {one['shapes']:,}" if "growth" in one else "",
        ]
        for name, one in found.items()
    ]
    yield table(["MiB", "opened", "peak", "private", "from files", "growth over random shapes"], rows)


def _coldstart(result: Result) -> Iterator[str]:
    found = result["coldstart_seconds"]
    title = "seconds from process start to the first embedding, median: import, open, first"
    yield f"<h3>{escape(title)}</h3>"
    bars = []
    for name, one in found.items():
        total = one["total"]
        parts = [one[step]["median"] for step in STEPS[:-1]]
        bars.append(Bar(name, parts, f"{total['median']:.2f}", total["min"], total["max"], is_ours(name)))
    yield draw(title, bars)
    rows = [[name, *(f"{one[step]['median']:.2f}" for step in STEPS)] for name, one in found.items()]
    yield table(["seconds", *STEPS], rows)


SECTIONS: Mapping[str, Callable[[Result], Iterator[str]]] = {
    "throughput": _throughput,
    "latency": _latency,
    "memory": _memory,
    "coldstart": _coldstart,
    "gpu": _gpu,
}


def is_ours(name: str) -> bool:
    """Whether a contender is this project."""
    found = CONTENDERS.get(name) or gpu_contenders("cpu").get(name)
    return found is not None and found.is_ours


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, escaped here."""
    lines = ["<table>", _line("th", head), *(_line("td", row) for row in rows), "</table>"]
    return "\n".join(lines)


def _line(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _versions(result: Result) -> str:
    lines = [
        f"{name}: "
        + ", ".join(f"{library} {version}" for library, version in one["versions"].items())
        + (f"; {one['about']}" if one["about"] else "")
        for name, one in result["contenders"].items()
    ]
    return (
        "<details><summary>versions</summary><ul>"
        + "".join(f"<li>{escape(line)}</li>" for line in lines)
        + "</ul></details>"
    )
