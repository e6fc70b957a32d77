"""Check for regressions: number of graph nodes, and speed relative to plain ONNX Runtime.

Node counts must equal those in smoke.json. Speeds are ratios of interleaved rounds, and must not be below the
generous bounds in that file; absolute times are not checked. `--record` rewrites the file.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from koe5_export.seeded import write_seeded_checkpoint

from benchmarks.contenders.prepared import Store
from benchmarks.contenders.registry import CONTENDERS, OWN
from benchmarks.speed.arguments import Setting
from benchmarks.speed.gemm import SETTLE_SECONDS
from benchmarks.speed.opened import open_field
from benchmarks.speed.results import write_json
from benchmarks.speed.statistics import ratio, rotated
from benchmarks.speed.texts import read_corpora
from koe5_onnx import InputError
from koe5_onnx.artifact import GRAPHS, PACKED_CPU_GRAPH
from koe5_onnx.engine.machine import DOT_PRODUCTS, cpu_features, usable_cores
from koe5_onnx.files import read_json

RECORD = Path(__file__).with_suffix(".json")
LAYERS = {"tiny": 2, "small": 6}
"""Number of layers of the seeded checkpoints."""
_PRECISIONS = ("fp32", "int8")
_OURS, _PLAIN = ("koe5-int8", "koe5-int8-padded"), ("ort-fp32", "ort-dynamic-int8")
_ROUNDS = 7
_GENEROUS = 0.6
"""A bound is this fraction of the measured ratio."""

Nodes = dict[str, dict[str, float]]
"""Number of nodes of each graph ("int8 padded"), by checkpoint ("tiny", "small"). The key "per layer" has the
nodes that each further layer adds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--cache", type=Path, default=Path("build/benchmarks"), metavar="FOLDER")
    parser.add_argument("--record", action="store_true", help="write the results to smoke.json")


def run(args: argparse.Namespace) -> int:
    """Count, measure and compare. The exit code is 1 if a result does not match the record."""
    stores = {size: _store(args.cache, size) for size in LAYERS}
    nodes, ratios = count(stores), measure(stores["small"])
    for graph, numbers in nodes.items():
        print(f"{graph}: " + ", ".join(f"{name} {number:g} nodes" for name, number in numbers.items()))
    for name, value in ratios.items():
        print(f"{name}: {value:.2f}x")
    if args.record:
        bounds = {name: math.floor(value * _GENEROUS * 100) / 100 for name, value in ratios.items()}
        write_json(RECORD, {"nodes": nodes, "least_ratios": bounds})
        return 0
    faults = list(compare(read_record(RECORD), nodes, ratios))
    print("\n".join(faults) or "as recorded")
    return 1 if faults else 0


def _store(cache: Path, size: str) -> Store:
    checkpoint = cache / f"smoke-{size}"
    if not checkpoint.is_dir():
        write_seeded_checkpoint(checkpoint, size)
    return Store(checkpoint, cache, environment=OWN)


def count(stores: Mapping[str, Store]) -> Nodes:
    """Return the number of nodes of each graph, including branches, and the number per additional layer."""
    found: Nodes = {}
    for precision in _PRECISIONS:
        contender = CONTENDERS[f"koe5-{precision}"]
        folders = {size: store.files_of(contender) for size, store in stores.items()}
        for graph, file in {"padded": GRAPHS[precision], "packed": PACKED_CPU_GRAPH}.items():
            if all((folder / file).is_file() for folder in folders.values()):
                found[f"{precision} {graph}"] = _numbers(folders, file)
    return found


def _numbers(folders: Mapping[str, Path], file: str) -> dict[str, float]:
    import onnx

    numbers: dict[str, float] = {
        size: nodes_of(onnx.load(folder / file, load_external_data=False).graph)
        for size, folder in folders.items()
    }
    (small, few), (large, many) = sorted(LAYERS.items(), key=lambda item: item[1])
    return numbers | {"per layer": (numbers[large] - numbers[small]) / (many - few)}


def nodes_of(graph: Any) -> int:
    """Count the nodes of a graph and its branches."""
    branches = (each.g for node in graph.node for each in node.attribute if each.HasField("g"))
    return len(graph.node) + sum(map(nodes_of, branches))


def measure(store: Store) -> dict[str, float]:
    """Return ratios of tokens per second to plain ONNX Runtime; empty on a CPU without int8 instructions."""
    if not set(cpu_features()) & set(DOT_PRODUCTS):
        print("skipped the ratios: this CPU has no int8 instructions")
        return {}
    contenders = [replace(CONTENDERS[name], environment=OWN) for name in (*_OURS, *_PLAIN)]
    (corpus,) = read_corpora(["mix"], None, store.checkpoint / "tokenizer.json", 24)
    with open_field(Setting(store, contenders, [corpus], usable_cores().count, None)) as field:
        if field.wrong:
            raise InputError(f"{next(iter(field.wrong))} is wrong: {next(iter(field.wrong.values()))}")
        rates: dict[str, list[float]] = {name: [] for name in field.opened}
        for turn in range(_ROUNDS + 1):
            for name in rotated(list(rates), turn):
                time.sleep(SETTLE_SECONDS)
                seconds = field.opened[name].worker.ask("embed", texts=corpus.texts)["seconds"]
                if turn:  # skip the warm-up round
                    rates[name].append(1 / seconds)
        graphs = {"koe5-int8-padded": "padded"}
        if "packed" in field.opened["koe5-int8"].about:
            graphs["koe5-int8"] = "packed"
    return {
        f"{graph} to {plain}": ratio(rates[name], rates[plain])
        for name, graph in graphs.items()
        for plain in _PLAIN
    }


def compare(record: Mapping[str, Any], nodes: Nodes, ratios: Mapping[str, float]) -> Iterator[str]:
    """Yield a line per graph whose node counts differ, and per ratio that is below its bound or has none."""
    for graph in sorted({*record["nodes"], *nodes}):
        expected, found = record["nodes"].get(graph), nodes.get(graph)
        if expected != found:
            yield f"nodes of {graph}: {found}, recorded {expected}. If intended, run smoke --record"
    for name, value in ratios.items():
        least = record["least_ratios"].get(name)
        if least is None:
            yield f"{name}: no bound is recorded. Run smoke --record"
        elif not value >= least:
            yield f"{name}: {value:.2f}x, expected at least {least:.2f}x"


def read_record(file: Path) -> dict[str, Any]:
    """Read the recorded results.

    Raises:
        InputError: The file is missing or has another format.
    """
    record: dict[str, Any] = read_json(file, InputError, "run python -m benchmarks smoke --record")
    if not {"nodes", "least_ratios"} <= record.keys():
        raise InputError(f"{file} lacks nodes or least_ratios. Run python -m benchmarks smoke --record")
    return record
