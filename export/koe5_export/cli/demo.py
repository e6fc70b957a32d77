"""koe5-onnx demo: the whole line on a small seeded checkpoint, without the network.

Its weights are random, so its similarities mean little; everything else is as it is with KoE5.
"""

from __future__ import annotations

import argparse
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_export.cli.export import DEFAULT_CHECKPOINT, import_export
from koe5_export.cli.stages import progress
from koe5_onnx import Artifact, Embedder

_PRECISIONS = ("fp32", "int8")
_ROUNDS = 20
_SHOWN_CELLS = 34
"""Terminal cells of a passage in the table."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb and its arguments."""
    parser = verbs.add_parser(
        "demo",
        help="try everything on a small random checkpoint",
        description="Make a small checkpoint with random weights, export it in fp32 and int8, prove both "
        "against PyTorch, and embed with them. Needs the extras cpu, export and reference, and no network.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("koe5-demo"), metavar="FOLDER")


def run(args: argparse.Namespace) -> int:
    """Run the demo and return the exit code."""
    koe5_export = import_export()
    checkpoint = _checkpoint(args.folder)
    artifacts = []
    for precision in _PRECISIONS:
        print(f"\n== {precision}: exporting and proving")
        options = koe5_export.ExportOptions(precision=precision, force=True)
        with progress() as report:
            artifacts.append(
                koe5_export.export_checkpoint(checkpoint, args.folder / precision, options, report)
            )
    for artifact in artifacts:
        _show_artifact(artifact)
    _show_similarities(artifacts[-1])
    print(_next_steps(args.folder))
    return 0


def _checkpoint(folder: Path) -> Any:
    """The demo's checkpoint, made on the first run."""
    from koe5_export.checkpoint import Checkpoint
    from koe5_export.seeded import write_seeded_checkpoint

    path = folder / "checkpoint"
    if not path.exists():
        print(f"== making a checkpoint of XLM-R shape with random weights: {path}")
        write_seeded_checkpoint(path, "small")
    return Checkpoint.open(path)


def _show_artifact(artifact: Artifact) -> None:
    from koe5_export.gate import describe
    from koe5_export.texts import DEMO_PASSAGES

    certificate = artifact.manifest.certificate
    size = artifact.manifest.total_bytes
    with Embedder.open(artifact.path) as embedder:
        texts = list(DEMO_PASSAGES) * 16
        tokens = int(embedder.count_tokens(texts, "passage").sum())
        bulk = tokens / _median_seconds(embedder, texts)
        query = _median_seconds(embedder, texts[:1])
    print(
        f"\n{artifact.path}: {size / 1e6:.1f} MB, {bulk:,.0f} tokens/s, one passage in {query * 1e3:.1f} ms"
    )
    if certificate is not None:
        print(f"  {describe(certificate)}")


def _median_seconds(embedder: Embedder, texts: Sequence[str]) -> float:
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        embedder.encode_passages(texts)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _show_similarities(artifact: Artifact) -> None:
    from koe5_export.texts import DEMO_PASSAGES, DEMO_QUERIES

    with Embedder.open(artifact.path) as embedder:
        queries, passages = embedder.encode_queries(DEMO_QUERIES), embedder.encode_passages(DEMO_PASSAGES)
        table = embedder.similarity(queries, passages)
    print(f"\n== similarities by {artifact.path} (random weights: the numbers mean nothing)")
    for number, query in enumerate(DEMO_QUERIES, 1):
        print(f"  q{number}  {query}")
    _print_table(table, DEMO_PASSAGES)


def _print_table(table: npt.NDArray[np.float32], passages: Sequence[str]) -> None:
    print("\n  " + _fit("passage") + "".join(f"{f'q{number}':>9}" for number in range(1, len(table) + 1)))
    for passage, column in zip(passages, table.T, strict=True):
        print("  " + _fit(passage) + "".join(f"{value:9.4f}" for value in column))


def _fit(text: str) -> str:
    """Cut or fill a text to the table's width; a Hangul syllable takes two cells."""
    cells = 0
    for end, character in enumerate(text):
        cells += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if cells > _SHOWN_CELLS - 1:
            return _fit(text[:end])
    return text + " " * (_SHOWN_CELLS - cells)


def _next_steps(folder: Path) -> str:
    return f"""
== now the real one ({DEFAULT_CHECKPOINT}, a download of 2.2 GB)
  koe5-onnx export {DEFAULT_CHECKPOINT} koe5-int8 --precision int8
  koe5-onnx embed passages.txt --artifact koe5-int8 --prompt-name passage --output passages.npy

== or from Python, with this demo's artifact
  from koe5_onnx import Embedder
  Embedder.open("{folder / "int8"}").encode_queries(["대한민국의 수도는?"])"""
