"""The picture of a quality measurement: distance of embeddings by length, and NDCG side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from benchmarks.quality_change import cosines_by_length
from benchmarks.quality_report import Report
from benchmarks.quality_run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Told apart by color-blind people too. Source: Okabe and Ito, https://jfly.uni-koeln.de/color/"""
_GREY = "#666666"
_CLOSEST = 1e-9
"""Distances below this are rounding; they are drawn here."""
_BINS_PER_DECADE = 10
_NDCG = ("NDCG@1", "NDCG@3", "NDCG@10")


Distances = dict[str, npt.NDArray[np.float64]]
"""Bucket of lengths in tokens to 1 - cosine of each text in it, to the baseline."""


def draw(report: Report, folder: Path) -> None:
    """Write quality.png and quality.svg into `folder`; the left half only where runs are compared."""
    from matplotlib.figure import Figure

    baseline, *others = report.runs
    distances = [_distances(baseline, other) for other in others]
    height = max(4.5, 1.6 + 0.75 * len(distances[0])) if others else 4.5
    figure = Figure(figsize=(11 if others else 5, height), layout="constrained")
    figure.suptitle(_title(report), fontsize=12, fontweight="bold")
    if others:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(3, 2), wspace=0.04)[0]
        _draw_distances(left, baseline.label, distances)
        _draw_ndcg(right.subplots(), report)
    else:
        _draw_ndcg(figure.subplots(), report)
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"quality.{suffix}", dpi=150)


def _title(report: Report) -> str:
    dataset = report.dataset
    return f"{dataset.name} ({len(dataset.queries)} queries, {len(dataset.passages)} passages)"


def _distances(baseline: Run, other: Run) -> Distances:
    found = cosines_by_length(baseline, other)
    return {bucket: np.maximum(1 - cosines, _CLOSEST) for bucket, cosines in found.items()}


def _draw_distances(figure: SubFigure, baseline: str, distances: Sequence[Distances]) -> None:
    """A histogram for each bucket of lengths, the shortest texts on top; a color for each run."""
    edges = _edges(distances)
    buckets = distances[0]
    every = np.atleast_1d(figure.subplots(len(buckets), 1, sharex=True))
    for axes, bucket in zip(every, buckets, strict=True):
        for number, one in enumerate(distances, 1):
            _draw_bucket(axes, one[bucket], edges, _COLORS[number % len(_COLORS)])
        _tidy_bucket(axes, f"{bucket} tokens\n{len(buckets[bucket])} texts")
    every[0].set_title(f"Distance to {baseline}, by length", fontsize=10, loc="left")
    every[-1].set_xscale("log")
    every[-1].set_xlabel(
        f"1 − cosine of the two embeddings of a text (line: median; below {_CLOSEST:g}: drawn there)",
        fontsize=9,
    )


def _edges(distances: Sequence[Distances]) -> list[float]:
    """Bins over all distances, equally wide on the logarithmic axis."""
    every = np.log10(np.concatenate([some for one in distances for some in one.values()]))
    low, high = np.floor(every.min()), np.ceil(every.max() + 1e-6)
    return [float(edge) for edge in np.logspace(low, high, int(high - low) * _BINS_PER_DECADE + 1)]


def _draw_bucket(axes: Axes, distances: npt.NDArray[np.float64], edges: list[float], color: str) -> None:
    share = np.full(len(distances), 1 / len(distances))
    axes.hist(distances, edges, weights=share, histtype="stepfilled", color=color, alpha=0.35)
    axes.hist(distances, edges, weights=share, histtype="step", color=color, linewidth=1.2)
    axes.axvline(float(np.median(distances)), color=color, linewidth=2)


def _tidy_bucket(axes: Axes, label: str) -> None:
    axes.set_yticks([])
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_ndcg(axes: Axes, report: Report) -> None:
    """Bars of each run, with their values; the colors are those of the histograms."""
    width = 0.8 / len(report.runs)
    for number, (run, figures) in enumerate(zip(report.runs, report.figures, strict=True)):
        places = np.arange(len(_NDCG)) + (number - (len(report.runs) - 1) / 2) * width
        color = _COLORS[number % len(_COLORS)]
        values = [100 * figures[name] for name in _NDCG]
        bars = axes.bar(places, values, 0.92 * width, color=color, label=run.label)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2, color=_GREY)
    axes.set_xticks(range(len(_NDCG)), _NDCG)
    axes.set_ylim(0, 100)
    axes.set_title("Retrieval, percent", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.08))
