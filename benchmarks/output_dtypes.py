"""What the output dtypes of `koe5-onnx bulk` change in retrieval, beside other ways to write int8.

python -m benchmarks output-dtypes --artifact koe5-int8 --dataset autorag --data FOLDER

The artifact's own float32 embeddings are the baseline. What `bulk` writes is made by its own code
(koe5_onnx/bulk/vectors.py); the others are here because they were tried.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.corpora import KNOWN, Dataset, load
from benchmarks.quality_change import compare_figures, compare_rankings
from benchmarks.quality_run import open_artifact, run_on
from benchmarks.retrieval import Array, rank, score
from koe5_onnx import Artifact
from koe5_onnx.bulk import unpack
from koe5_onnx.bulk.vectors import to_arrow

_FIGURE = "NDCG@10"


@dataclass(frozen=True)
class Way:
    """One way to write vectors."""

    name: str
    bits: int
    """A component."""
    passages: Callable[[Array], Array]
    """Embeddings to what is stored, as numbers that a cosine can be taken of."""
    queries: Callable[[Array], Array]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--artifact", required=True, metavar="A", help="an artifact's folder or Hub id")
    parser.add_argument(
        "--dataset", required=True, metavar="D", help=f"one of {', '.join(KNOWN)}, or a dataset's folder"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where a named dataset lies")
    parser.add_argument(
        "--out", type=Path, default=Path("build/quality"), metavar="DIR", help="default: %(default)s"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print a table.

    Raises:
        Koe5Error: The dataset or the artifact cannot be used.
    """
    dataset = load(args.dataset, args.data)
    with open_artifact(Artifact.open(args.artifact)) as encoder:
        found = run_on(encoder, dataset, args.out / "embeddings")
    before = score(dataset, rank(found.queries, found.passages))[_FIGURE]
    print(f"{_FIGURE} of float32: {before.mean():.2%}\n")
    print("| written as | bits | top-10 overlap mean / worst | Spearman | NDCG@10, points (95 %) |")
    print("| --- | --- | --- | --- | --- |")
    for way in ways(found.passages):
        print(_line(way, dataset, found.queries, found.passages))
    return 0


def _line(way: Way, dataset: Dataset, queries: Array, passages: Array) -> str:
    before = rank(queries, passages)
    after = rank(way.queries(queries), way.passages(passages))
    overlap, correlation = compare_rankings(before, after)
    change = compare_figures(score(dataset, before), score(dataset, after))[_FIGURE]
    low, high = 100 * change.low, 100 * change.high
    return (
        f"| {way.name} | {way.bits} | {overlap.mean:.1%} / {overlap.min:.0%} | {correlation.mean:.5f} "
        f"| {100 * change.difference:+.2f} ({low:+.2f} to {high:+.2f}) |"
    )


def ways(passages: Array) -> list[Way]:
    """All ways; those that must be calibrated are, on the passages."""
    spread = 6 / np.sqrt(passages.shape[1])
    return [
        Way("float16", 16, _stored("float16"), _stored("float16")),
        Way("int8, a scale a row", 8, _stored("int8"), _stored("int8")),
        Way("int8, a scale a row; float queries", 8, _stored("int8"), _as_it_is),
        Way("int8, 127 for 1", 8, _fixed(1.0), _fixed(1.0)),
        Way("int8, 127 for 6 standard deviations", 8, _fixed(float(spread)), _fixed(float(spread))),
        Way("int8, ranges of each dimension", 8, _ranges(passages), _ranges(passages)),
        Way("binary, Hamming", 1, _bits, _bits),
        Way("binary; float queries", 1, _bits, _as_it_is),
    ]


def _as_it_is(embeddings: Array) -> Array:
    return embeddings


def _stored(dtype: str) -> Callable[[Array], Array]:
    """As `bulk` writes it, first column; a row's scale does not change its cosines."""

    def convert(embeddings: Array) -> Array:
        column = to_arrow(embeddings, "vector", dtype)[0]
        values = column.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(values.reshape(len(embeddings), -1), np.float32)

    return convert


def _bits(embeddings: Array) -> Array:
    column = to_arrow(embeddings, "vector", "binary")[0]
    packed = column.flatten().to_numpy().reshape(len(embeddings), -1)
    return unpack(packed, embeddings.shape[1])


def _fixed(largest: float) -> Callable[[Array], Array]:
    return lambda embeddings: np.rint(np.clip(embeddings / largest, -1, 1) * 127)


def _ranges(passages: Array) -> Callable[[Array], Array]:
    """Smallest and largest value of each dimension to -128 and 127, as quantize_embeddings has it.

    Source: https://sbert.net/docs/package_reference/quantization.html
    """
    low, high = passages.min(axis=0), passages.max(axis=0)
    return lambda embeddings: np.clip(np.floor((embeddings - low) / (high - low) * 255) - 128, -128, 127)
