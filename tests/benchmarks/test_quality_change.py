from dataclasses import replace

import numpy as np
import pytest
from tolerances import FIGURE_ATOL

from benchmarks.quality_change import Measured, compare, compare_figures, compare_rankings
from benchmarks.quality_run import Run
from benchmarks.retrieval import rank
from koe5_onnx import InputError, Source

pytest.importorskip("scipy")

QUERIES, PASSAGES, DIM = 20, 200, 16


def random_rows(rows, seed):
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)


def run_of(passages, label="run"):
    lengths = {
        "query_tokens": np.full(QUERIES, 10, np.int32),
        "passage_tokens": np.full(PASSAGES, 700, np.int32),
    }
    return Run(label, Source("r", None, "0"), {}, 512, random_rows(QUERIES, 0), passages, **lengths)


@pytest.fixture
def measured():
    """Return a function that makes a run, its ranking and a metric that depends on the best passage."""

    def measure(passages, label="run"):
        run = run_of(passages, label)
        ranking = rank(run.queries, run.passages)
        return Measured(run, ranking, {"best": ranking[:, 0].astype(float)})

    return measure


def test_identical_runs_do_not_differ(measured):
    passages = random_rows(PASSAGES, 1)
    change = compare(measured(passages, "a"), measured(passages, "b"))
    assert (change.baseline, change.run) == ("a", "b")
    assert change.top10_overlap.min == change.top10_overlap.mean == 1
    assert change.rank_correlation.min == pytest.approx(1, abs=FIGURE_ATOL)
    assert change.cosine.cosine_min == pytest.approx(1, abs=FIGURE_ATOL)
    for found in change.differences.values():
        assert (found.difference, found.low, found.high) == (0, 0, 0)


def test_a_shuffled_run_has_little_in_common(measured):
    passages = random_rows(PASSAGES, 1)
    change = compare(measured(passages), measured(np.random.default_rng(2).permutation(passages)))
    assert change.top10_overlap.mean < 0.2, "chance is 10 / 200"
    assert abs(change.rank_correlation.mean) < 0.2
    assert change.cosine_by_length["257-512"].cosine_min < 0.9
    assert change.cosine_by_length["1-16"].cosine_min == pytest.approx(1, abs=FIGURE_ATOL)


def test_overlap_and_correlation_by_hand():
    first = np.array([np.arange(12), np.arange(12)])
    second = first.copy()
    second[0, [9, 10]] = second[0, [10, 9]]
    overlap, correlation = compare_rankings(first, second)
    assert (overlap.mean, overlap.min) == pytest.approx((0.95, 0.9), abs=FIGURE_ATOL)
    # One swap of adjacent ranks among 12: 1 - 6 * 2 / (12 * 143).
    assert correlation.min == pytest.approx(1 - 12 / (12 * 143), abs=FIGURE_ATOL)


def test_correlation_compares_ranks_not_passage_indices():
    # Passages 0, 1, 2, 3 have ranks 2, 0, 1, 3 and 0, 2, 1, 3: squared differences 4 + 4 + 0 + 0.
    _, correlation = compare_rankings(np.array([[1, 2, 0, 3]]), np.array([[0, 2, 1, 3]]))
    assert correlation.mean == pytest.approx(1 - 6 * 8 / (4 * 15), abs=FIGURE_ATOL)


def test_the_interval_uses_paired_differences():
    spread = np.linspace(0, 1, 400)
    shifted = {"figure": spread + 0.01 * (1 + np.sin(np.arange(400)))}
    found = compare_figures({"figure": spread}, shifted)["figure"]
    assert found.low < found.difference < found.high
    # Without pairing, the spread of 0 to 1 would give an interval of 0.08.
    assert 0.008 < found.low < found.high < 0.012
    assert found == compare_figures({"figure": spread}, shifted)["figure"], "the resampling is seeded"


def test_runs_of_different_dimensions_are_rejected(measured):
    wide = measured(random_rows(PASSAGES, 1), "a")
    run = wide.run
    narrow = replace(run, label="b", queries=run.queries[:, :8], passages=run.passages[:, :8])
    with pytest.raises(InputError, match="a has 16 dimensions, but b has 8"):
        compare(wide, replace(wide, run=narrow))
