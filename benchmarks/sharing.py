"""What share_weights saves: memory of several processes with one artifact, and seconds of a start.

Every process has embedded twenty texts before it is looked at. Starts take turns: a process that packs for
itself, the first that shares and writes the files, one that finds them; with --cold each of them once more
after artifact and files have left the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.contenders.process import kilobytes_of
from benchmarks.speed.results import head, write_json
from koe5_onnx import Artifact, EngineOptions
from koe5_onnx.engine.graphs import choose
from koe5_onnx.engine.machine import usable_cores
from koe5_onnx.files import cache_folder

_MEBIBYTE = 2**20
_CHILD = """
import json, statistics, sys, time
from koe5_onnx import Embedder
def seconds(do, *arguments):
    start = time.perf_counter()
    do(*arguments)
    return time.perf_counter() - start
texts = [f"서울은 대한민국의 수도이다. 문장 {row} 번은 조금 더 길다." for row in range(20)]
start = time.perf_counter()
embedder = Embedder.open(sys.argv[1], threads=int(sys.argv[2]), share_weights=sys.argv[3] == "shared")
found = {"open_s": time.perf_counter() - start, "first_query_s": seconds(embedder.encode_queries, texts[:1])}
embedder.encode_passages(texts)
if sys.argv[4] == "timed":
    found["query_s"] = statistics.median(seconds(embedder.encode_queries, texts[:1]) for _ in range(30))
    pages = [" ".join(texts[:15])] * 8
    found["pages_s"] = statistics.median(seconds(embedder.encode_passages, pages) for _ in range(3))
print(json.dumps(found), flush=True)
sys.stdin.readline()
"""
STEPS = ("open_s", "first_query_s", "query_s", "pages_s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--artifact", type=Path, required=True, metavar="DIR", help="with a packed graph")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], metavar="N")
    parser.add_argument("--threads", type=int, default=usable_cores().count, metavar="N")
    parser.add_argument("--starts", type=int, default=7, metavar="N", help="of each kind (default: 7)")
    parser.add_argument("--cold", action="store_true", help="also starts with nothing in the page cache")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        ProviderError: The packed graph does not run here: there is nothing to share.
    """
    artifact = Artifact.open(args.artifact)
    choose(artifact, EngineOptions(graph="packed"))
    result = head("sharing", args.threads, artifact.path)
    cache_folder().mkdir(parents=True, exist_ok=True)
    # On the disk where the files would lie.
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=cache_folder()) as folder:
        bench = _Bench(args.artifact, args.threads, Path(folder))
        for way in ("own", "shared"):  # hashes of the artifact, and the files
            bench.start(way)
        result["kept_bytes"] = sum(file.stat().st_size for file in bench.packed.rglob("*.packed"))
        result["memory"] = [
            {"processes": count, "way": way} | bench.memory(count, way)
            for count in args.processes
            for way in ("own", "shared")
        ]
        result["starts"] = bench.starts(args.starts, args.cold)
    print(table(result))
    if args.json is not None:
        write_json(args.json, result)
    return 0


class _Bench:
    """Processes that embed, with a cache folder of their own."""

    def __init__(self, artifact: Path, threads: int, cache: Path) -> None:
        self._artifact, self._threads, self._cache = artifact, threads, cache
        self.packed = cache / "packed-weights"

    @contextmanager
    def _process(self, way: str, timed: str = "not timed") -> Iterator[tuple[int, dict[str, float]]]:
        """A process that has embedded, with what it measured."""
        command = [sys.executable, "-c", _CHILD, str(self._artifact), str(self._threads), way, timed]
        env = {**os.environ, "KOE5_ONNX_CACHE": str(self._cache)}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
            line = process.stdout.readline() if process.stdout is not None else b""
            if not line or process.stdin is None:
                raise OSError("a process ended before it had embedded: its own words are on stderr")
            yield process.pid, json.loads(line)
            process.stdin.close()

    def start(self, way: str) -> dict[str, float]:
        """What one start takes."""
        with self._process(way, "timed") as (_, found):
            return found

    def memory(self, count: int, way: str) -> dict[str, float]:
        """Means over so many processes at the same time."""
        with ExitStack() as stack:
            pids = [stack.enter_context(self._process(way))[0] for _ in range(count)]
            found = [_rollup(pid) for pid in pids]
        return {name: statistics.mean(one[name] for one in found) for name in found[0]}

    def starts(self, count: int, cold: bool) -> dict[str, dict[str, float]]:
        """Medians by kind of start."""
        found: dict[str, list[dict[str, float]]] = {}
        for turn in range(count):
            for kind in ("own", "first", "again", *(("own, cold", "again, cold") if cold else ())):
                if kind == "first":
                    shutil.rmtree(self.packed)
                if kind.endswith("cold"):
                    _evict([*self._artifact.iterdir(), *self.packed.rglob("*.packed")])
                found.setdefault(kind, []).append(self.start("own" if "own" in kind else "shared"))
            print(f"round {turn + 1} of {count}", file=sys.stderr)
        return {
            kind: {step: statistics.median(one[step] for one in starts) for step in STEPS}
            for kind, starts in found.items()
        }


def _rollup(pid: int) -> dict[str, float]:
    """Bytes: all that is there, its share by the number of processes, and what nobody else has."""
    sizes = kilobytes_of(Path(f"/proc/{pid}/smaps_rollup"))
    own = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {"rss_bytes": 1024 * sizes["Rss"], "pss_bytes": 1024 * sizes["Pss"], "uss_bytes": 1024 * own}


def _evict(files: Sequence[Path]) -> None:
    """Let go of the files' pages in memory, which no process may have mapped."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    lines = [f"{'MiB a process':16}{'RSS':>8}{'PSS':>8}{'USS':>8}{'all PSS':>10}"]
    for one in result["memory"]:
        rss, pss, uss = (one[f"{name}_bytes"] / _MEBIBYTE for name in ("rss", "pss", "uss"))
        total = one["processes"] * pss
        lines.append(f"{one['processes']:2} {one['way']:13}{rss:8,.0f}{pss:8,.0f}{uss:8,.0f}{total:10,.0f}")
    lines.append(f"{'ms, medians':16}" + "".join(f"{step.removesuffix('_s'):>13}" for step in STEPS))
    for kind, one in result["starts"].items():
        lines.append(f"{kind:16}" + "".join(f"{1000 * one[step]:13,.1f}" for step in STEPS))
    lines.append(f"kept on disk: {result['kept_bytes'] / 1e6:,.1f} MB")
    return "\n".join(lines)
