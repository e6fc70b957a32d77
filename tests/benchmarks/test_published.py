from math import log2

import pytest
from tolerances import FIGURE_ATOL, PUBLISHED_PERCENT_ATOL

from benchmarks.corpora import KNOWN
from benchmarks.published import AUTORAG, AUTORAG_QUERIES, PUBLISHED, autorag_hits, standard_autorag_ndcg_3

# Mean reciprocal rank of the top three, for models that are also in the benchmark's own table.
# Source: https://github.com/Marker-Inc-Korea/AutoRAG-example-korean-embedding-benchmark (README, Top-k 3)
PRINTED_MRR_3 = {"mGTE": 0.3450, "kf-deberta": 0.2792}


@pytest.mark.parametrize("model", PUBLISHED[AUTORAG])
def test_whole_numbers_of_hits_give_all_published_figures(model):
    published = PUBLISHED[AUTORAG][model]
    first, second, third = autorag_hits(published)
    assert min(first, second, third) >= 0
    reversed_gain = first / log2(4) + second / log2(3) + third
    found = (first, first, reversed_gain, (first + second + third) / 2)
    assert [100 * gain / AUTORAG_QUERIES for gain in found] == pytest.approx(
        list(published), abs=PUBLISHED_PERCENT_ATOL
    )


@pytest.mark.parametrize("model", PRINTED_MRR_3)
def test_the_hits_in_reverse_order_give_the_printed_reciprocal_rank(model):
    first, second, third = autorag_hits(PUBLISHED[AUTORAG][model])
    assert round((first / 3 + second / 2 + third) / AUTORAG_QUERIES, 4) == PRINTED_MRR_3[model]


def test_the_standard_ndcg_3_is_above_ndcg_1():
    for published in PUBLISHED[AUTORAG].values():
        assert published.ndcg_3 < published.ndcg_1 < standard_autorag_ndcg_3(published)
    assert standard_autorag_ndcg_3(PUBLISHED[AUTORAG]["KoE5"]) == pytest.approx(
        100 * (79 + 17 / log2(3) + 4 / 2) / 114, abs=FIGURE_ATOL
    )


def test_every_known_dataset_has_published_figures():
    assert {known.title for known in KNOWN.values()} == set(PUBLISHED)
