"""Compare two sets of embeddings of the same texts by cosines and retrieval metrics, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from koe5_export.weights import Array
from koe5_onnx import Agreement, Retrieval
from koe5_onnx.artifact import ERROR_BINS

_BUCKETS = (16, 32, 64, 128, 256, 512, 8192)
"""Upper bounds of the length buckets (ranges) of a certificate, in tokens."""
_NEIGHBORS = 10
_EQUAL = 1e-6
"""Cosines that differ by at most this count as equal, because embeddings are rounded to float32."""


def agreement(found: Array, reference: Array) -> Agreement:
    """Compare the embeddings `found`, float32[n, dim], with those of the reference, float32[n, dim]."""
    rows = cosines(found, reference)
    return Agreement(
        texts=len(rows),
        cosine_min=float(rows.min()),
        cosine_p1=float(np.percentile(rows, 1)),
        cosine_mean=float(rows.mean()),
        max_abs_diff=float(np.abs(_unit(found) - _unit(reference)).max()),
        error_counts=_error_counts(1 - rows),
    )


def by_length(found: Array, reference: Array, lengths: npt.NDArray[np.int32]) -> dict[str, Agreement]:
    """Compare embeddings like `agreement`, for each bucket of `lengths` (int32[n], in tokens)."""
    buckets = length_buckets(lengths)
    return {bucket: agreement(found[rows], reference[rows]) for bucket, rows in buckets.items()}


def length_buckets(lengths: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return a mask of texts, bool[n], for each non-empty length bucket, shortest first."""
    buckets: dict[str, npt.NDArray[np.bool_]] = {}
    low = 1
    for high in _BUCKETS:
        rows = (lengths >= low) & (lengths <= high)
        if rows.any():
            buckets[f"{low}-{high}"] = rows
        low = high + 1
    return buckets


def retrieval(found: Array, reference: Array) -> Retrieval:
    """Use each text as a query for all others, with both sets of embeddings, and compare the results.

    A neighbor in `found` counts as shared if its similarity in `reference` is at least that of the query's
    last neighbor in `reference`, because texts with equal similarities are equally good results.
    """
    ours, theirs = (_similarities_to_others(rows) for rows in (found, reference))
    neighbors = min(_NEIGHBORS, len(found) - 1)
    last = -np.sort(-theirs, axis=1)[:, neighbors - 1 : neighbors]
    best = np.argsort(-ours, axis=1, kind="stable")[:, :neighbors]
    kept = np.take_along_axis(theirs, best, axis=1) >= last - _EQUAL
    correlations = [np.corrcoef(_ranks(a), _ranks(b))[0, 1] for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = np.percentile(theirs, (5, 50, 95))
    return Retrieval(
        texts=len(found),
        neighbors=neighbors,
        overlap=float(kept.mean()),
        rank_correlation=float(np.mean(correlations)),
        similarity_error=float(np.abs(ours - theirs).max()),
        similarity_p5=float(low),
        similarity_p50=float(middle),
        similarity_p95=float(high),
    )


def cosines(a: Array, b: Array) -> npt.NDArray[np.float64]:
    """Return the cosines between corresponding rows of a and b, float32[n, dim]: float64[n]."""
    return np.asarray((_unit(a) * _unit(b)).sum(axis=1))


def _error_counts(errors: npt.NDArray[np.float64]) -> dict[str, int]:
    bins = np.minimum(np.searchsorted(ERROR_BINS, errors, side="right"), len(ERROR_BINS) - 1)
    numbers, counts = np.unique(bins, return_counts=True)
    return {f"{ERROR_BINS[number]:g}": int(count) for number, count in zip(numbers, counts, strict=True)}


def _similarities_to_others(rows: Array) -> npt.NDArray[np.float64]:
    """Return the cosines of each text to all others: float64[n, n - 1]."""
    similarities = _unit(rows) @ _unit(rows).T
    others = ~np.eye(len(rows), dtype=bool)
    return np.asarray(similarities[others].reshape(len(rows), len(rows) - 1))


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    return np.asarray(np.argsort(np.argsort(values, kind="stable"), kind="stable"))


def _unit(rows: Array) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))
