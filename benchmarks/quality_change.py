"""Compare two runs on one dataset: rankings, metrics and embeddings.

top-10 overlap    share of the baseline's top ten that is also in the other run's top ten
rank correlation  Spearman's, over all passages of a query
difference        other minus baseline, with a 95 % interval by paired bootstrap over the queries
cosine            of the two embeddings of each text, by length
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from koe5_export.agreement import agreement, by_length

from benchmarks.quality_run import Run
from benchmarks.retrieval import DEPTH, PerQuery, Ranking
from koe5_onnx import Agreement, InputError

_CONFIDENCE = 0.95
_RESAMPLES = 9999
_SEED = 0


@dataclass(frozen=True)
class Measured:
    """A run with its ranking and metrics."""

    run: Run
    ranking: Ranking
    figures: PerQuery


@dataclass(frozen=True)
class OverQueries:
    """Mean and minimum of a value over all queries."""

    mean: float
    min: float


@dataclass(frozen=True)
class Difference:
    """Difference of a mean metric with its confidence interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """Differences between a baseline and another run."""

    baseline: str
    run: str
    top10_overlap: OverQueries
    rank_correlation: OverQueries
    differences: Mapping[str, Difference]
    """Differences by metric name."""
    cosine: Agreement
    cosine_by_length: Mapping[str, Agreement]


def compare_rankings(baseline: Ranking, other: Ranking) -> tuple[OverQueries, OverQueries]:
    """Return the top-10 overlap and rank correlation of two rankings of the same passages."""
    return _over_queries(_overlap(baseline, other)), _over_queries(_correlation(baseline, other))


def compare_figures(baseline: PerQuery, other: PerQuery) -> dict[str, Difference]:
    """Return the difference of every metric, other minus baseline."""
    return {name: _difference(other[name] - values) for name, values in baseline.items()}


def compare(baseline: Measured, other: Measured) -> Change:
    """Return all differences between two runs.

    Raises:
        InputError: The embeddings cannot be compared.
    """
    a, b = baseline.run.embeddings, other.run.embeddings
    if a.shape != b.shape:
        raise InputError(
            f"{baseline.run.label} has {a.shape[1]} dimensions, but {other.run.label} has {b.shape[1]}. "
            "Compare runs of the same checkpoint"
        )
    overlap, correlation = compare_rankings(baseline.ranking, other.ranking)
    return Change(
        baseline=baseline.run.label,
        run=other.run.label,
        top10_overlap=overlap,
        rank_correlation=correlation,
        differences=compare_figures(baseline.figures, other.figures),
        cosine=agreement(b, a),
        cosine_by_length=by_length(b, a, baseline.run.lengths),
    )


def _over_queries(values: npt.NDArray[np.float64]) -> OverQueries:
    return OverQueries(float(values.mean()), float(values.min()))


def _overlap(baseline: Ranking, other: Ranking) -> npt.NDArray[np.float64]:
    """Return float64[queries]: the share of the baseline's top ten that is in the other run's top ten."""
    pairs = zip(baseline[:, :DEPTH], other[:, :DEPTH], strict=True)
    return np.array([np.isin(best, others).mean() for best, others in pairs])


def _correlation(baseline: Ranking, other: Ranking) -> npt.NDArray[np.float64]:
    from scipy.stats import spearmanr

    # The rank of each passage is the inverse permutation of the ranking.
    pairs = zip(np.argsort(baseline, axis=1), np.argsort(other, axis=1), strict=True)
    return np.array([spearmanr(a, b).statistic for a, b in pairs])


def _difference(per_query: npt.NDArray[np.float64]) -> Difference:
    """Return the mean and its interval by a bootstrap over queries. Each query has both runs' values."""
    from scipy.stats import bootstrap

    interval = bootstrap(
        (per_query,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",  # scipy's default, BCa, is undefined if no query changes
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return Difference(float(per_query.mean()), float(interval.low), float(interval.high))
