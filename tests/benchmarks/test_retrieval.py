from dataclasses import replace
from math import log2

import numpy as np
import pytest
from tolerances import FIGURE_ATOL

from benchmarks.layouts import Contents
from benchmarks.retrieval import rank, score, score_reversed

pytest.importorskip("ir_measures")

# Row indices of the passages a, b, c, d, e. a and b, which are relevant to q1, have ranks 2 and 3. c, which
# is relevant to q2, has rank 4.
RANKING = np.array([[4, 0, 1, 2, 3], [4, 3, 0, 2, 1]])
EXPECTED = {
    "NDCG@1": (0, 0),
    "F1@1": (0, 0),
    "NDCG@3": ((1 / log2(3) + 1 / 2) / (1 + 1 / log2(3)), 0),
    "F1@3": (2 * (2 / 3) / (2 / 3 + 1), 0),
    "NDCG@10": ((1 / log2(3) + 1 / 2) / (1 + 1 / log2(3)), 1 / log2(5)),
    "Recall@1": (0, 0),
    "Recall@3": (1, 0),
    "Recall@5": (1, 1),
    "Recall@10": (1, 1),
    "MRR@10": (1 / 2, 1 / 4),
}


def test_every_figure_by_hand(dataset):
    found = score(dataset, RANKING)
    assert list(found) == list(EXPECTED)
    for name, values in EXPECTED.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=FIGURE_ATOL, err_msg=name)


def test_f1_at_1_is_below_1_with_two_relevant_passages(dataset):
    found = score(dataset, np.array([[0, 4, 1, 2, 3], [2, 4, 3, 0, 1]]))
    np.testing.assert_allclose(found["NDCG@1"], [1, 1], rtol=0, atol=FIGURE_ATOL)
    np.testing.assert_allclose(found["F1@1"], [2 * (1 / 2) / (1 + 1 / 2), 1], rtol=0, atol=FIGURE_ATOL)


def test_grades_are_gains(dataset):
    contents = dataset.contents._replace(relevant={"q1": {"a": 2, "b": 1}, "q2": {"c": 1}})
    found = score(replace(dataset, contents=contents), np.array([[1, 0, 2, 3, 4], [2, 0, 1, 3, 4]]))
    expected = (1 + 2 / log2(3)) / (2 + 1 / log2(3))
    np.testing.assert_allclose(found["NDCG@3"], [expected, 1], rtol=0, atol=FIGURE_ATOL)


def test_nothing_counts_below_rank_10(dataset):
    passages = {f"p{row}": "" for row in range(12)}
    contents = Contents(dataset.contents.queries, passages, {"q1": {"p9": 1}, "q2": {"p10": 1}})
    ranking = np.tile(np.arange(12), (2, 1))
    found = score(replace(dataset, contents=contents), ranking)
    np.testing.assert_allclose(found["MRR@10"], [1 / 10, 0], rtol=0, atol=FIGURE_ATOL)
    np.testing.assert_allclose(found["Recall@10"], [1, 0], rtol=0, atol=FIGURE_ATOL)


def test_reversed_best_three(dataset):
    # In reverse order, the relevant passages of q1 have ranks 1 and 2, and that of q2 has rank 1.
    found = score_reversed(dataset, np.array([[4, 0, 1, 2, 3], [4, 3, 2, 0, 1]]))
    np.testing.assert_allclose(found, [1, 1], rtol=0, atol=FIGURE_ATOL)
    # In both orders, those of q1 have ranks 1 and 3. That of q2 has rank 3 instead of rank 1.
    found = score_reversed(dataset, np.array([[0, 4, 1, 2, 3], [2, 4, 3, 0, 1]]))
    expected = [(1 + 1 / 2) / (1 + 1 / log2(3)), 1 / 2]
    np.testing.assert_allclose(found, expected, rtol=0, atol=FIGURE_ATOL)


def test_ranks_by_cosine_not_by_dot_product():
    queries = np.array([[1, 0], [0, 5]], np.float32)
    passages = np.array([[3, 3], [9, 1], [0, 0.1]], np.float32)
    np.testing.assert_array_equal(rank(queries, passages), [[1, 0, 2], [2, 0, 1]])


def test_equal_passages_keep_the_order_of_the_corpus():
    passages = np.tile(np.array([[0, 1], [1, 0], [1, 1]], np.float32), (200, 1))
    expected = [*range(1, 600, 3), *range(2, 600, 3), *range(0, 600, 3)]
    np.testing.assert_array_equal(rank(passages[1:2], passages), [expected])
