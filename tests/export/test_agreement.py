"""Agreement of two sets of embeddings in cosines, error counts and rankings, with known expected values."""

import numpy as np
import pytest
from koe5_export.agreement import agreement, by_length, retrieval

CIRCLE = np.array([[np.cos(a), np.sin(a)] for a in np.linspace(0, 1.05, 12) ** 1.3], np.float32)
"""Twelve embeddings in a plane; all angles between them differ."""


def turned(rows, angle):
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (rows @ rotation.T).astype(np.float32)


@pytest.mark.parametrize(("angle", "bin_end"), [(0.0, "1e-08"), (0.02, "0.0003"), (0.1, "0.01"), (1.0, "1")])
def test_cosine_errors_are_counted_in_bins(angle, bin_end):
    found = agreement(turned(CIRCLE, angle), CIRCLE)
    assert found.cosine_mean == pytest.approx(np.cos(angle), abs=1e-6)
    assert found.cosine_min <= found.cosine_p1 <= found.cosine_mean
    assert found.error_counts == {bin_end: 12}


def test_agreement_ignores_length_but_not_direction():
    found = agreement(3 * CIRCLE, CIRCLE)
    assert found.max_abs_diff < 1e-6
    assert agreement(-CIRCLE, CIRCLE).error_counts == {"3": 12}


def test_each_text_is_in_one_length_bucket():
    lengths = np.array([1, 16, 17, 64, 65, 128, 129, 256, 257, 511, 512, 513], np.int32)
    found = by_length(CIRCLE, CIRCLE, lengths)
    assert {name: part.texts for name, part in found.items()} == {
        "1-16": 2,
        "17-32": 1,
        "33-64": 1,
        "65-128": 2,
        "129-256": 2,
        "257-512": 3,
        "513-8192": 1,
    }


def test_equal_rankings_overlap_completely():
    found = retrieval(turned(CIRCLE, 0.3), CIRCLE)
    assert (found.texts, found.neighbors) == (12, 10)
    assert found.overlap == 1
    assert found.rank_correlation == pytest.approx(1)
    assert found.similarity_error < 1e-6
    others = (CIRCLE @ CIRCLE.T)[~np.eye(12, dtype=bool)]
    spread = found.similarity_p5, found.similarity_p50, found.similarity_p95
    assert spread == pytest.approx(np.percentile(others, (5, 50, 95)), abs=1e-6)


def test_equal_texts_are_interchangeable_results():
    """Rounding decides which of two equal texts ranks first, so both orders must count as equal."""
    rows = np.repeat(CIRCLE, 2, axis=0)
    moved = rows + np.random.default_rng(0).normal(scale=1e-8, size=rows.shape).astype(np.float32)
    assert retrieval(moved, rows).overlap == 1


def test_different_rankings_are_measured():
    """Every second embedding is negated. Therefore about half of the other texts become the farthest."""
    signs = np.where(np.arange(12) % 2, 1, -1)[:, None]
    found = retrieval((CIRCLE * signs).astype(np.float32), CIRCLE)
    assert found.rank_correlation < 0.5
    assert found.overlap < 1
    nearest = (CIRCLE @ CIRCLE.T)[np.add.outer(np.arange(12), np.arange(12)) % 2 == 1].max()
    assert found.similarity_error == pytest.approx(2 * nearest, abs=1e-5)
