"""Measure requests per second and latency over HTTP, compared with the Python API and other servers.

Each of N clients requests the embedding of one text and waits for it before the next request. Servers and the
Python API take turns in every round. The clients run on the same cores, and their CPU time is reported
separately.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.prepared import Store
from benchmarks.contenders.registry import CONTENDERS
from benchmarks.speed.clients import Load, beside_bulk, load
from benchmarks.speed.clients import run as run_clients
from benchmarks.speed.results import head, write_json
from benchmarks.speed.servers import PEERS, Server, ours, peer
from benchmarks.speed.statistics import percentile, rotated
from benchmarks.speed.texts import Corpus, queries_of, read_corpora
from koe5_onnx import Embedder, InputError, TruncationWarning
from koe5_onnx.engine.machine import usable_cores

_CACHE = Path("build/benchmarks")
_QUERY_TOKENS = (29, 55)
_LEAST_COSINE = 0.97
"""Minimum cosine of a peer's embedding to that of the Python API. The peer computes in fp32, not in int8."""
_PAGE_CHARACTERS = 3000
"""Characters of a page, which has more than 512 tokens: a token of Korean has about 2 characters."""
_BULK_CLIENTS = 32
_QUERIES = 10_000
"""Number of different queries from which the query log is drawn."""
_CALLS_IN_TURN = 20
"""Maximum number of calls of a lone query before the next server takes its turn."""


@dataclass(frozen=True)
class Setting:
    """Validated settings from the command line."""

    artifact: Path
    checkpoint: Path
    corpora: Sequence[Corpus]
    concurrency: Sequence[int]
    rounds: int
    laps: int
    lone_calls: int
    wait_ms: Sequence[float]
    cache_entries: int | None
    peers: Sequence[str]
    json: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--artifact", type=Path, metavar="FOLDER", help="artifact to serve (default: the checkpoint in int8)"
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="C", help="checkpoint folder")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder with korsts/ and autorag_ko/")
    parser.add_argument("--texts", type=int, metavar="N", help="number of texts per corpus")
    parser.add_argument("--corpus", action="append", choices=("short", "pages"), help="default: short")
    parser.add_argument("--concurrency", action="append", type=int, metavar="N", help="default: 1, 8, 64")
    parser.add_argument(
        "--wait-ms",
        action="append",
        type=float,
        default=[],
        help="also measure our server with this --max-wait-ms",
    )
    parser.add_argument(
        "--cache-entries",
        type=int,
        metavar="N",
        help="also measure repeated queries, with and without a cache",
    )
    parser.add_argument("--peer", action="append", default=[], choices=PEERS, help="also measure this peer")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--laps",
        type=int,
        default=4,
        metavar="N",
        help="requests per text in each round; more reduce the weight of the first and last batches, which "
        "are not full (default: %(default)s)",
    )
    parser.add_argument(
        "--lone-calls",
        type=int,
        default=100,
        metavar="N",
        help="calls per round with one query at a time (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to FILE")


def run(args: argparse.Namespace) -> int:
    """Measure and print. The exit code is 1 if a server returns a different embedding or an error."""
    if min(args.rounds, args.laps, args.lone_calls, *(args.concurrency or ())) < 1:
        raise InputError("--rounds, --laps, --lone-calls and --concurrency must be at least 1")
    artifact = args.artifact or Store(args.checkpoint, _CACHE, {}).files_of(CONTENDERS["koe5-int8"])
    tokenizer = artifact / "tokenizer.json"
    setting = Setting(
        artifact,
        args.checkpoint,
        read_corpora(args.corpus or ["short"], args.data, tokenizer, args.texts),
        args.concurrency or (1, 8, 64),
        args.rounds,
        args.laps,
        args.lone_calls,
        args.wait_ms,
        args.cache_entries,
        args.peer,
        args.json,
    )
    result = measure(setting)
    print(table(result))
    if setting.json is not None:
        write_json(setting.json, result)
    return 1 if result["wrong"] else 0


def measure(setting: Setting) -> dict[str, Any]:
    """Start and check all servers, let them take turns, and return the result."""
    result = head("serve", usable_cores().count, setting.checkpoint)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        offline = stack.enter_context(Embedder.open(setting.artifact))
        starting = {"ours": ours(setting.artifact)}
        starting |= {f"ours, wait {wait:g} ms": ours(setting.artifact, wait) for wait in setting.wait_ms}
        starting |= {name: peer(name, setting.checkpoint) for name in setting.peers}
        servers = {name: stack.enter_context(server) for name, server in starting.items()}
        result["wrong"] = _wrong(servers, offline, setting)
        running = {name: one for name, one in servers.items() if name not in result["wrong"]}
        rounds = [_round(running, offline, setting, turn) for turn in range(setting.rounds)]
        result["lone_ms"] = _lone(running, offline, setting)
        result["fairness"] = _fairness(running["ours"], setting)
    if setting.cache_entries is not None:
        result["query_log"] = _query_log(setting)
    result["load"] = {
        corpus.name: _merged([one[corpus.name] for one in rounds], corpus, setting.laps)
        for corpus in setting.corpora
    }
    result["wrong"] |= _failed(result["load"])
    return result


def _wrong(servers: Mapping[str, Server], offline: Embedder, setting: Setting) -> dict[str, str]:
    """Return, by server, why its embeddings differ too much from those of the Python API."""
    texts = [text for corpus in setting.corpora for text in corpus.texts[:4]]
    expected = offline.encode(texts)
    found: dict[str, str] = {}
    for name, server in servers.items():
        got = server.embed(texts)
        cosines = np.sum(got * expected, axis=1) / np.linalg.norm(got, axis=1)
        print(f"{name}: cosine {cosines.min():.6f} to the Python API", file=sys.stderr)
        least = 1 - 1e-5 if name.startswith("ours") else _LEAST_COSINE
        if cosines.min() < least:
            found[name] = f"cosine {cosines.min():.6f}, expected at least {least}"
    return found


def _failed(loads: Mapping[str, Any]) -> dict[str, str]:
    """Return a message for each server with failed requests, because its speed includes these requests."""
    found: dict[str, int] = {}
    for load_ in loads.values():
        for name, by_concurrency in load_["servers"].items():
            found[name] = found.get(name, 0) + sum(row["errors"] for row in by_concurrency.values())
    return {name: f"{errors} requests failed" for name, errors in found.items() if errors}


def _round(
    servers: Mapping[str, Server], offline: Embedder, setting: Setting, turn: int
) -> dict[str, dict[Any, Any]]:
    """Return by corpus a `Load` by (server, clients), and the Python API's tokens per second as "offline"."""
    found: dict[str, dict[Any, Any]] = {}
    for corpus in setting.corpora:
        one: dict[Any, Any] = {}
        # Measure the Python API before and after each server, so that temporary load affects both.
        offline_seconds = [_seconds_offline(offline, corpus)]
        for name in rotated(list(servers), turn):
            for concurrency in setting.concurrency:
                texts = corpus.texts * setting.laps
                one[name, concurrency] = run_clients(load(servers[name], texts, concurrency))
                offline_seconds.append(_seconds_offline(offline, corpus))
        one["offline"] = corpus.tokens / float(np.median(offline_seconds))
        found[corpus.name] = one
        print(f"round {turn + 1} of {setting.rounds}, {corpus.name}", file=sys.stderr)
    return found


def _seconds_offline(offline: Embedder, corpus: Corpus) -> float:
    start = time.perf_counter()
    offline.encode(corpus.texts)
    return time.perf_counter() - start


def _merged(rounds: Sequence[Mapping[Any, Any]], corpus: Corpus, laps: int) -> dict[str, Any]:
    """Return medians over the rounds, and percentiles of the latencies of all rounds together."""
    requests, tokens = laps * len(corpus.texts), laps * corpus.tokens
    offline = float(np.median([one["offline"] for one in rounds]))
    keys = [key for key in rounds[0] if key != "offline"]
    found: dict[str, Any] = {
        "offline_tokens_per_s": offline,
        "texts": len(corpus.texts),
        "laps": laps,
        "servers": {},
    }
    for name, concurrency in keys:
        loads: list[Load] = [one[name, concurrency] for one in rounds]
        speeds = [tokens / one.seconds for one in loads]
        shares = [speed / one["offline"] for speed, one in zip(speeds, rounds, strict=True)]
        calls = [milliseconds for one in loads for milliseconds in one.milliseconds]
        found["servers"].setdefault(name, {})[str(concurrency)] = {
            "requests_per_s": float(np.median([requests / one.seconds for one in loads])),
            "tokens_per_s": float(np.median(speeds)),
            "share_of_offline": float(np.median(shares)),
            "client_cpu_ms": _median_ms([one.client_seconds / requests for one in loads]),
            "server_cpu_ms": _median_ms([one.server_seconds / requests for one in loads]),
            "errors": sum(one.errors for one in loads),
            **_percentiles(calls),
        }
    return found


def _median_ms(seconds: Sequence[float]) -> float:
    return 1000 * float(np.median(seconds))


def _lone(servers: Mapping[str, Server], offline: Embedder, setting: Setting) -> dict[str, Any]:
    """Return percentiles of the latency of one query with the Python API and each server, in turn."""
    queries = sorted(queries_of(setting.corpora[0], *_QUERY_TOKENS), key=len)
    query = queries[len(queries) // 2]
    calls: dict[str, list[float]] = {"offline": [], **{name: [] for name in servers}}
    # Each turn has few calls, so that temporary load on the machine affects all servers similarly.
    for _ in range(setting.rounds * -(-setting.lone_calls // _CALLS_IN_TURN)):
        for _ in range(min(_CALLS_IN_TURN, setting.lone_calls)):
            start = time.perf_counter()
            offline.encode([query])
            calls["offline"].append(1000 * (time.perf_counter() - start))
        for name, server in servers.items():
            texts = [query] * (min(_CALLS_IN_TURN, setting.lone_calls) if name.startswith("ours") else 5)
            calls[name] += run_clients(load(server, texts, 1)).milliseconds
    return {name: _percentiles(some) for name, some in calls.items()}


def _fairness(server: Server, setting: Setting) -> dict[str, Any]:
    """Time queries one by one, alone and while clients send pages as fast as they are answered."""
    queries = queries_of(setting.corpora[0], *_QUERY_TOKENS)
    page = " ".join(setting.corpora[-1].texts * 60)[:_PAGE_CHARACTERS]
    alone: list[float] = []
    beside: list[float] = []
    pages = 0.0
    for _ in range(setting.rounds):
        alone += run_clients(load(server, queries[:60], 1)).milliseconds
        some, pages_per_s = run_clients(beside_bulk(server, queries[:60], [page], _BULK_CLIENTS))
        beside += some
        pages += pages_per_s / setting.rounds
    unloaded, loaded = _percentiles(alone), _percentiles(beside)
    return {
        "alone_ms": unloaded,
        "beside_bulk_ms": loaded,
        "p99_ratio": loaded["p99_ms"] / unloaded["p99_ms"],
        "bulk_texts_per_s": pages,
    }


def _query_log(setting: Setting) -> dict[str, Any]:
    """Measure queries that repeat as in a log of searches, without and with a cache, in turns."""
    texts = setting.corpora[0].texts
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        servers = {
            str(entries): stack.enter_context(ours(setting.artifact, cache_entries=entries))
            for entries in (0, setting.cache_entries or 0)
        }
        loads: dict[str, list[Load]] = {entries: [] for entries in servers}
        for turn in range(setting.rounds):
            log = repeated(texts, setting.laps * len(texts), turn)
            for entries in rotated(list(servers), turn):
                servers[entries].embed(["가"])  # sets `dim`, with which the clients check answers
                loads[entries].append(run_clients(load(servers[entries], log, max(setting.concurrency))))
        for entries, some in loads.items():
            hits = servers[entries].metric("koe5_cached_inputs_total")
            found[entries] = {
                "requests_per_s": [len(log) / one.seconds for one in some],
                "server_cpu_ms": [1000 * one.server_seconds / len(log) for one in some],
                "hit_rate": hits / servers[entries].metric("koe5_inputs_total{"),
            }
    return found


def repeated(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Draw `count` of 10,000 variants of the texts, with frequencies of 1 / rank (Zipf's law)."""
    variants = [f"{text} {number // len(texts)}" for number, text in zip(range(_QUERIES), cycle(texts))]
    frequencies = 1 / np.arange(1, _QUERIES + 1)
    drawn = np.random.default_rng(seed).choice(_QUERIES, count, p=frequencies / frequencies.sum())
    return [variants[number] for number in drawn.tolist()]


def _percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    shares = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
    return {name: percentile(milliseconds, share) for name, share in shares.items()}


def table(result: Mapping[str, Any]) -> str:
    """Format the result for a terminal."""
    lines = []
    for corpus, one in result["load"].items():
        lines += [
            f"{corpus}: offline {one['offline_tokens_per_s']:,.0f} tokens/s",
            f"{'':28}{'clients':>8}{'req/s':>8}{'tok/s':>8}{'share':>7}{'p50 ms':>9}{'p95':>8}{'p99':>8}"
            f"{'cpu ms: server':>16}{'clients':>9}",
        ]
        for name, by_concurrency in one["servers"].items():
            for concurrency, row in by_concurrency.items():
                lines.append(
                    f"{name:28}{concurrency:>8}{row['requests_per_s']:8.1f}{row['tokens_per_s']:8,.0f}"
                    f"{row['share_of_offline']:7.1%}{row['p50_ms']:9.1f}{row['p95_ms']:8.1f}{row['p99_ms']:8.1f}"
                    f"{row['server_cpu_ms']:16.2f}{row['client_cpu_ms']:9.2f}"
                )
    lines += [f"a lone query: {name:20}{_in_words(one)}" for name, one in result["lone_ms"].items()]
    fairness = result["fairness"]
    lines += [
        f"queries alone: {_in_words(fairness['alone_ms'])}",
        f"queries during bulk requests ({fairness['bulk_texts_per_s']:.2f} pages/s): "
        f"{_in_words(fairness['beside_bulk_ms'])}, p99 {fairness['p99_ratio']:.2f} times",
    ]
    for entries, row in result.get("query_log", {}).items():
        speeds = ", ".join(f"{speed:.1f}" for speed in row["requests_per_s"])
        cpu = ", ".join(f"{one:.2f}" for one in row["server_cpu_ms"])
        lines.append(
            f"query log, {entries} cached: {speeds} requests/s, {cpu} ms of CPU each, "
            f"hit rate {row['hit_rate']:.1%}"
        )
    return "\n".join([*lines, *(f"{name} is wrong: {why}" for name, why in result["wrong"].items())])


def _in_words(row: Mapping[str, float]) -> str:
    return f"p50 {row['p50_ms']:.1f} ms, p95 {row['p95_ms']:.1f}, p99 {row['p99_ms']:.1f}"
