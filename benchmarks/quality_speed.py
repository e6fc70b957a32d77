"""Read results of the throughput benchmark for the quality report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.results import read_result
from koe5_onnx import InputError

CORPUS = "mix"
"""The corpus whose throughput is reported: half short and half long texts."""


@dataclass(frozen=True)
class Speed:
    """Throughput with one checkpoint on one machine."""

    checkpoint: str
    machine: str
    rounds: Mapping[str, Sequence[float]]
    """Tokens per second of each interleaved round, by contender."""

    def median(self, contender: str) -> float | None:
        """Return the median tokens per second, or None if the contender was not timed."""
        return median(self.rounds[contender]) if contender in self.rounds else None

    def best(self, contender: str) -> float | None:
        """Return the tokens per second of the fastest round, or None if the contender was not timed."""
        return max(self.rounds[contender]) if contender in self.rounds else None


def read_speeds(files: Sequence[Path]) -> list[Speed]:
    """Read results of the throughput benchmark, one speed per checkpoint in the order of the files.

    If several files of one checkpoint contain a contender, the first file takes precedence.

    Raises:
        InputError: A file is not a throughput result, or files of one checkpoint differ in machine, number of
            threads or kind of time.
    """
    found: dict[str, Speed] = {}
    for file in files:
        result = read_result(file)
        if result["benchmark"] != "throughput" or CORPUS not in result["corpora"]:
            raise InputError(
                f"{file} has no throughput of the corpus {CORPUS}. Measure it with throughput --json"
            )
        figures = result["corpora"][CORPUS]["tokens_per_second"]
        rounds = {name: one["rounds"] for name, one in figures.items()}
        name, machine = result["checkpoint"], _machine(result)
        earlier = found.get(name)
        if earlier is not None and earlier.machine != machine:
            raise InputError(
                f"{file} was measured on {machine}, but another file of {name} on {earlier.machine}. "
                "Pass files with the same conditions"
            )
        found[name] = Speed(name, machine, rounds | dict(earlier.rounds if earlier else {}))
    return list(found.values())


def _machine(result: dict[str, Any]) -> str:
    threads = result["threads"]
    by = ", computed from CPU time" if result.get("time") == "processor" else ""
    return f"{result['machine']['cpu']}, {threads} {'thread' if threads == 1 else 'threads'}{by}"
