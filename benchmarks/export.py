"""Measure the time per stage and the peak memory of an export.

python -m benchmarks export build/large --precision int8 --json build/export.json

The table shows the elapsed time, and the CPU time divided by the number of cores. The CPU time depends less
on other load on the machine.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.precision import PRECISIONS

from benchmarks.speed.results import head, write_json
from koe5_onnx import Artifact
from koe5_onnx.engine.machine import usable_cores


@dataclass(frozen=True)
class Stage:
    """Measurements of one stage."""

    name: str
    parts: int
    """Number of tokens, layers or bytes, depending on the stage; 1 for the stage "opening"."""
    seconds: float
    processor_seconds: float
    peak_rss_bytes: int
    """Peak memory of the process from its start to the end of the stage."""


class Stages:
    """A `koe5_export.progress.Progress` that measures each stage until the next one starts."""

    def __init__(self) -> None:
        self.done: list[Stage] = []
        self._name, self._parts = "opening", 1
        self._start = time.monotonic(), time.process_time()

    def __call__(self, stage: str, _done: int, total: int) -> None:
        """Start a new stage when its name changes."""
        if stage != self._name:
            self.end()
            self._name, self._parts = stage, total

    def end(self) -> None:
        """End the current stage."""
        now = time.monotonic(), time.process_time()
        elapsed, processor = (after - before for before, after in zip(self._start, now, strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.done.append(Stage(self._name, self._parts, elapsed, processor, peak))
        self._start = now


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of the checkpoint")
    parser.add_argument("--precision", choices=PRECISIONS, default="int8", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")


def run(args: argparse.Namespace) -> int:
    """Export into a temporary folder next to the checkpoint and print the time of each stage."""
    stages = Stages()
    with tempfile.TemporaryDirectory(dir=args.checkpoint.parent) as folder:
        artifact = export_checkpoint(
            Checkpoint.open(args.checkpoint),
            Path(folder) / "artifact",
            ExportOptions(precision=args.precision),
            stages,
        )
        stages.end()
    cores = usable_cores().count
    result = head("export", cores, args.checkpoint)
    result |= {"precision": args.precision, "stages": [asdict(stage) for stage in stages.done]}
    result |= _certificate(artifact)
    print(table(stages.done, cores))
    if args.json is not None:
        write_json(args.json, result)
    return 0


def _certificate(artifact: Artifact) -> dict[str, Any]:
    """Return the certificates of both graphs, to check that a faster export is as accurate."""
    manifest = artifact.manifest
    found = {"padded": manifest.certificate, "packed": manifest.packed_certificate}
    return {
        name: {
            "texts": certificate.overall.texts,
            "batch_texts": certificate.batch_texts,
            "cosine_min": certificate.overall.cosine_min,
            "cosine_mean": certificate.overall.cosine_mean,
            **asdict(certificate.retrieval),
        }
        for name, certificate in found.items()
        if certificate is not None
    }


def table(stages: list[Stage], cores: int) -> str:
    """Return the stages, their total time and the highest peak memory as a Markdown table."""
    total = Stage(
        "all",
        0,
        sum(stage.seconds for stage in stages),
        sum(stage.processor_seconds for stage in stages),
        max(stage.peak_rss_bytes for stage in stages),
    )
    lines = [
        f"| stage | parts | elapsed | processor time / {cores} cores | peak memory |",
        "|---|---|---|---|---|",
    ]
    for stage in (*stages, total):
        parts = f"{stage.parts:,}" if stage.parts else ""
        lines.append(
            f"| {stage.name} | {parts} | {stage.seconds:.1f} s | {stage.processor_seconds / cores:.1f} s "
            f"| {stage.peak_rss_bytes / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(["export", *sys.argv[1:]]))
