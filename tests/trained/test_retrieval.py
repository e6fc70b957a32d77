"""The effect of int8 on retrieval and on sentence similarity.

int8 must not be worse than fp32 according to the 95 % interval of a paired bootstrap; it may be better.
"""

import numpy as np
import pytest
from tolerances import KORSTS_SPEARMAN_MIN

from benchmarks.quality_change import compare_figures
from benchmarks.retrieval import rank, score

RESAMPLES = 2000

pytestmark = pytest.mark.filterwarnings("ignore::koe5_onnx.TruncationWarning")


def test_autorag_ndcg_of_int8_is_not_worse(embed, autorag):
    figures = {}
    for precision in ("fp32", "int8"):
        queries = embed({"query": autorag.queries}, precision)
        passages = embed({"passage": autorag.passages}, precision)
        figures[precision] = score(autorag, rank(queries, passages))
    found = compare_figures(figures["fp32"], figures["int8"])["NDCG@10"]
    assert found.high >= 0, found


def test_korsts_spearman_of_int8_is_not_worse(embed, korsts):
    scipy_stats = pytest.importorskip("scipy.stats")
    first, second, scores = zip(*korsts, strict=True)
    sentences = list(dict.fromkeys([*first, *second]))
    row_of = {sentence: row for row, sentence in enumerate(sentences)}
    left, right = ([row_of[sentence] for sentence in side] for side in (first, second))
    similar = {}
    for precision in ("fp32", "int8"):
        embeddings = embed({"query": sentences}, precision).astype(np.float64)
        similar[precision] = (embeddings[left] * embeddings[right]).sum(axis=1)

    def spearman(precision, rows):
        return scipy_stats.spearmanr(np.array(scores)[rows], similar[precision][rows]).statistic

    every = np.arange(len(scores))
    assert spearman("fp32", every) >= KORSTS_SPEARMAN_MIN
    choose = np.random.default_rng(0)
    drawn = [choose.integers(len(every), size=len(every)) for _ in range(RESAMPLES)]
    differences = [spearman("int8", rows) - spearman("fp32", rows) for rows in drawn]
    assert np.quantile(differences, 0.975) >= 0
