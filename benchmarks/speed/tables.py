"""The marked tables of docs/performance.md, made from the committed results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.contenders.registry import CONTENDERS, ROOT
from benchmarks.speed.results import read_result
from benchmarks.speed.texts import CORPORA
from koe5_onnx import InputError
from koe5_onnx.files import read_json

Result = Mapping[str, Any]
RESULTS = ROOT / "benchmarks/results"
QUALITY = RESULTS / "quality-me5small-amd-zen4"
MACHINES = {"intel-amx": "Intel Xeon, AMX", "amd-zen4": "AMD EPYC, Zen 4"}
"""Machine names in the documentation, by suffix of the results' folders."""
COLD_START = ("import the library", "open the model", "first embedding", "total")
DISTURBED = {"throughput-other.json"}
"""Files of results that other processes disturbed. Only the fastest rounds of these results are shown."""
_NONE = "–"


def speeds() -> dict[str, list[Result]]:
    """Return the results of `throughput`, `latency`, `memory` and `coldstart` per machine."""
    found: dict[str, list[Result]] = {}
    for machine in MACHINES:
        files = sorted((RESULTS / f"speed-{machine}").glob("*.json"))
        # `throughput` uses the first file with a system, so the run with the most rounds comes first.
        files.sort(key=lambda file: file.name != "throughput-int8.json")
        found[machine] = [{**read_result(file), "file": file.name} for file in files]
    return found


def undisturbed(results: Iterable[Result]) -> list[Result]:
    """Return the results without those in `DISTURBED`."""
    return [result for result in results if result["file"] not in DISTURBED]


def tables() -> dict[str, str]:
    """Return the marked tables of docs/performance.md as Markdown, by name."""
    machines = speeds()
    quiet = {machine: undisturbed(found) for machine, found in machines.items()}
    serve = {machine: read_result(RESULTS / f"serve-{machine}.json") for machine in MACHINES}
    infinity = read_result(RESULTS / "serve-amd-zen4-infinity.json")
    return {
        "conditions": _conditions(machines),
        "versions": _versions(quiet),
        **{f"speed {machine}": _speed(quiet[machine]) for machine in MACHINES},
        "ceiling": _ceiling(quiet),
        "other precisions": _other_precisions(machines["amd-zen4"]),
        "latency": _by_machine(quiet, ("p50", "p90", "p99"), "ms", _latency),
        "memory": _by_machine(quiet, ("after opening", "peak"), "MiB", _memory),
        "cold start": _by_machine(quiet, COLD_START, "s", _coldstart),
        "server": _server([*serve.items(), ("amd-zen4", infinity)]),
        "server latency": _server_latency(serve),
        "installation": _installation(read_result(RESULTS / "footprint.json")),
        "quality": _quality(),
    }


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Return a table whose first `texts` columns are text and whose others are numbers."""
    rule = ["---"] * texts + ["---:"] * (len(head) - texts)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def _names(results: Iterable[Result], benchmark: str) -> list[str]:
    measured = [result for result in results if result["benchmark"] == benchmark]
    return [name for name in CONTENDERS if any(name in result["contenders"] for result in measured)]


def _bold(name: str) -> str:
    return f"**{name}**" if CONTENDERS[name].is_ours else name


def _conditions(machines: Mapping[str, Sequence[Result]]) -> str:
    rows = []
    for machine, results in machines.items():
        about = results[0]["machine"]
        commits = dict.fromkeys(f"{result['commit']} ({result['at'][:10]})" for result in results)
        rows.append(
            [
                MACHINES[machine],
                ", ".join(about["instructions"]),
                f"{about['cores']} cores, {results[0]['threads']} threads, {about['memory_gib']} GiB",
                f"kernel {about['kernel']}, Python {about['python']}",
                ", ".join(commits),
            ]
        )
    return _markdown(
        ("machine", "instructions", "cores and memory", "software", "commits of koe5-onnx"), rows, 5
    )


def _versions(machines: Mapping[str, Sequence[Result]]) -> str:
    results = [result for found in machines.values() for result in found]
    rows = []
    for name in _names(results, "throughput"):
        about = next(result["contenders"][name] for result in results if name in result["contenders"])
        versions = (
            f"{library} {version.partition('-')[0]}" for library, version in about["versions"].items()
        )
        cosines = [
            result["contenders"][name]["cosine_min"]
            for result in results
            if result["benchmark"] == "throughput" and name in result["contenders"]
        ]
        rows.append([_bold(name), ", ".join(versions), f"{min(cosines):.6f}"])
    return _markdown(("system", "versions", "lowest cosine to PyTorch"), rows, 2)


def _speed(results: Sequence[Result]) -> str:
    baseline = next(result["baseline"] for result in results if result["benchmark"] == "throughput")
    rows = [
        [_bold(name), *(_rate(results, name, corpus) for corpus in CORPORA)]
        for name in _names(results, "throughput")
    ]
    columns = (f"{corpus}, tokens/s (relative to {baseline})" for corpus in CORPORA)
    return _markdown(("system", *columns), rows)


def _rate(results: Iterable[Result], name: str, corpus: str) -> str:
    one = throughput(results, name, corpus)
    return _NONE if one is None else f"{one['median']:,.0f} ({one['ratio']:.2f}x)"


def throughput(results: Iterable[Result], name: str, corpus: str) -> Mapping[str, Any] | None:
    """Return a system's results on a corpus from the first file that has them."""
    for result in results:
        if result["benchmark"] == "throughput":
            found: Mapping[str, Any] | None = result["corpora"][corpus]["tokens_per_second"].get(name)
            if found is not None:
                return found
    return None


def _ceiling(machines: Mapping[str, Sequence[Result]]) -> str:
    rows = []
    for machine, results in machines.items():
        one = next(result for result in results if result["benchmark"] == "throughput")
        shares = (
            f"{one['corpora'][c]['tokens_per_second']['koe5-int8']['share_of_ceiling']:.0%}" for c in CORPORA
        )
        rows.append([MACHINES[machine], f"{one['ceiling']['stock']['median']:,.0f}", *shares])
    return _markdown(
        ("machine", "MatMulInteger alone, tokens/s", *(f"koe5-int8 on {c}, relative" for c in CORPORA)), rows
    )


def _other_precisions(results: Sequence[Result]) -> str:
    (one,) = (result for result in results if result["file"] in DISTURBED)
    rows = [
        [_bold(name), *(f"{one['corpora'][c]['tokens_per_second'][name]['max']:,.0f}" for c in CORPORA)]
        for name in CONTENDERS
        if name in one["contenders"]
    ]
    return _markdown(("system", *(f"{corpus}, tokens/s" for corpus in CORPORA)), rows)


def _by_machine(
    machines: Mapping[str, Sequence[Result]],
    columns: Sequence[str],
    unit: str,
    cells: Callable[[Sequence[Result], str], list[str] | None],
) -> str:
    """Return a table with one row per machine and system."""
    rows = []
    for machine, results in machines.items():
        for name in CONTENDERS:
            found = cells(results, name)
            if found is not None:
                rows.append([MACHINES[machine], _bold(name), *found])
    return _markdown(("machine", "system", *(f"{column}, {unit}" for column in columns)), rows, 2)


def _first(results: Iterable[Result], benchmark: str, key: str, name: str) -> Mapping[str, Any] | None:
    return next((r[key][name] for r in results if r["benchmark"] == benchmark and name in r[key]), None)


def _latency(results: Sequence[Result], name: str) -> list[str] | None:
    one = _first(results, "latency", "latency_ms", name)
    return None if one is None else [f"{one[key]:.1f}" for key in ("p50", "p90", "p99")]


def _memory(results: Sequence[Result], name: str) -> list[str] | None:
    one = _first(results, "memory", "memory", name)
    keys = ("opened_rss_bytes", "peak_rss_bytes")
    return None if one is None else [f"{one[key] / 2**20:,.0f}" for key in keys]


def _coldstart(results: Sequence[Result], name: str) -> list[str] | None:
    one = _first(results, "coldstart", "coldstart_seconds", name)
    return (
        None if one is None else [f"{one[key]['median']:.2f}" for key in ("import", "open", "first", "total")]
    )


def _server(results: Sequence[tuple[str, Result]]) -> str:
    rows = []
    for machine, result in results:
        for name, load in result["load"]["short"]["servers"].items():
            for clients, one in load.items():
                rows.append(
                    [
                        f"{MACHINES[machine]}, {result['at'][:16].replace('T', ' ')}",
                        "**koe5-onnx serve**" if name == "ours" else name,
                        clients,
                        f"{one['tokens_per_s']:,.0f}",
                        f"{one['share_of_offline']:.1%}",
                        f"{one['p50_ms']:,.0f}",
                        f"{one['p99_ms']:,.0f}",
                    ]
                )
    head = (
        "machine, start of the run",
        "server",
        "clients",
        "tokens/s",
        "relative to the Python API",
        "p50, ms",
        "p99, ms",
    )
    return _markdown(head, rows, 2)


def _server_latency(results: Mapping[str, Result]) -> str:
    kinds: tuple[tuple[str, Callable[[Result], Mapping[str, float]]], ...] = (
        ("Python API, one query at a time", lambda result: result["lone_ms"]["offline"]),
        ("server, one query at a time", lambda result: result["lone_ms"]["ours"]),
        ("server, queries without bulk requests", lambda result: result["fairness"]["alone_ms"]),
        ("server, queries during bulk requests", lambda result: result["fairness"]["beside_bulk_ms"]),
    )
    rows = [
        [MACHINES[machine], what, *(f"{of(result)[f'p{share}_ms']:.1f}" for share in (50, 95, 99))]
        for machine, result in results.items()
        for what, of in kinds
    ]
    return _markdown(("machine", "measurement", "p50, ms", "p95, ms", "p99, ms"), rows, 2)


def _installation(result: Result) -> str:
    rows = [
        [
            name,
            f"{one['packages']}",
            f"{one['bytes'] / 1e6:,.0f}",
            f"{one['import_seconds']:.2f}",
            f"{one['rss_bytes'] / 1e6:,.0f}",
        ]
        for name, one in result["installations"].items()
    ]
    return _markdown(("installation", "packages", "size, MB", "import, s", "memory after import, MB"), rows)


def _quality() -> str:
    report: Mapping[str, Any] = read_json(QUALITY / "quality.json", InputError, "measure it again")
    rates = read_result(QUALITY / "speed.json")["corpora"]["mix"]["tokens_per_second"]
    changes = {change["run"]: change for change in report["changes"]}
    rows = []
    for one in report["runs"]:
        label = one["label"]
        if label in changes:
            name = f"koe5-{label}" if one["kind"] == "artifact" else label
            change, rate = changes[label], rates.get(name)
            ndcg, cosine = change["differences"]["NDCG@10"], change["cosine"]
            rows.append(
                [
                    _bold(name),
                    f"{change['top10_overlap']['mean']:.1%}",
                    f"{cosine['cosine_min']:.4f} / {cosine['cosine_mean']:.4f}",
                    f"{100 * ndcg['difference']:+.2f} ({100 * ndcg['low']:.2f} to {100 * ndcg['high']:.2f})",
                    _NONE if rate is None else f"{rate['median']:,.0f}",
                ]
            )
    change = "change of NDCG@10, points (95 % interval)"
    head = ("system", "top-10 overlap", "cosine, min / mean", change, "tokens/s")
    return _markdown(head, rows)
