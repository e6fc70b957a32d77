"""What changes between two runs over one dataset: rankings, figures, embeddings.

top-10 overlap  share of the baseline's best ten that are also among the other's best ten
rank correlation  Spearman's, over all passages of a query
difference      other minus baseline, with a 95 % interval by bootstrap over the queries, which are paired
cosine          of the two embeddings of each text, by length
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from koe5_export.agreement import agreement, by_length, cosines, length_buckets

from benchmarks.quality_run import Run
from benchmarks.retrieval import DEPTH, PerQuery, Ranking
from koe5_onnx import Agreement, InputError

_CONFIDENCE = 0.95
_RESAMPLES = 9999
_SEED = 0


@dataclass(frozen=True)
class Measured:
    """A run and what its embeddings give."""

    run: Run
    ranking: Ranking
    figures: PerQuery


@dataclass(frozen=True)
class OverQueries:
    """A figure that each query has."""

    mean: float
    min: float


@dataclass(frozen=True)
class Difference:
    """Of a mean figure, with its interval of confidence."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """From a baseline to another run."""

    baseline: str
    run: str
    top10_overlap: OverQueries
    rank_correlation: OverQueries
    differences: Mapping[str, Difference]
    """By the figure's name."""
    cosine: Agreement
    cosine_by_length: Mapping[str, Agreement]


def compare_rankings(baseline: Ranking, other: Ranking) -> tuple[OverQueries, OverQueries]:
    """Top-10 overlap and rank correlation of two rankings of the same passages."""
    return _over_queries(_overlap(baseline, other)), _over_queries(_correlation(baseline, other))


def compare_figures(baseline: PerQuery, other: PerQuery) -> dict[str, Difference]:
    """The difference of every figure."""
    return {name: _difference(other[name] - values) for name, values in baseline.items()}


def compare(baseline: Measured, other: Measured) -> Change:
    """All that changes from one run to another.

    Raises:
        InputError: Their embeddings cannot be compared.
    """
    a, b = baseline.run.embeddings, other.run.embeddings
    if a.shape != b.shape:
        raise InputError(
            f"{baseline.run.label} has {a.shape[1]} dimensions and {other.run.label} has {b.shape[1]}: "
            "expected runs of one checkpoint"
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


def cosines_by_length(baseline: Run, other: Run) -> dict[str, npt.NDArray[np.float64]]:
    """Bucket of lengths in tokens to the cosine of each of its texts between the two runs."""
    found = cosines(other.embeddings, baseline.embeddings)
    return {bucket: found[rows] for bucket, rows in length_buckets(baseline.lengths).items()}


def _over_queries(values: npt.NDArray[np.float64]) -> OverQueries:
    return OverQueries(float(values.mean()), float(values.min()))


def _overlap(baseline: Ranking, other: Ranking) -> npt.NDArray[np.float64]:
    """float64[queries]."""
    pairs = zip(baseline[:, :DEPTH], other[:, :DEPTH], strict=True)
    return np.array([np.isin(best, others).mean() for best, others in pairs])


def _correlation(baseline: Ranking, other: Ranking) -> npt.NDArray[np.float64]:
    """float64[queries]."""
    from scipy.stats import spearmanr

    # The place of each passage in a ranking is the ranking's inverse.
    pairs = zip(np.argsort(baseline, axis=1), np.argsort(other, axis=1), strict=True)
    return np.array([spearmanr(a, b).statistic for a, b in pairs])


def _difference(per_query: npt.NDArray[np.float64]) -> Difference:
    """Resampling the differences is resampling the pairs: both runs answer the same queries."""
    from scipy.stats import bootstrap

    interval = bootstrap(
        (per_query,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",  # the corrected ones are undefined where no query changes
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return Difference(float(per_query.mean()), float(interval.low), float(interval.high))
