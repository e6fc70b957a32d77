"""Rank passages by embeddings and compute retrieval metrics per query.

ir-measures computes the metrics as trec_eval defines them, except F1, which is derived from P and R:

    NDCG@k    sum of grade / log2(rank + 1) over the top k, divided by the same sum of an ideal ranking
    Recall@k  share of the relevant passages that are in the top k
    F1@k      2PR / (P + R), where P = relevant passages in the top k / k and R = Recall@k
    MRR@10    1 / rank of the first relevant passage, or 0 if it is not in the top 10

All are between 0 and 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.corpora import Dataset

Array = npt.NDArray[np.float32]
Ranking = npt.NDArray[np.int64]
"""int64[queries, passages]: row indices of passages, best first."""
PerQuery = dict[str, npt.NDArray[np.float64]]
"""Values per query by metric name: float64[queries]."""

DEPTH = 10
"""Maximum rank that any metric uses."""
_F1 = (1, 3)


def rank(queries: Array, passages: Array) -> Ranking:
    """Order all passages by their cosine to each query. Ties keep the order of the corpus.

    Args:
        queries: float32[queries, dim].
        passages: float32[passages, dim].
    """
    similarity = _unit(queries) @ _unit(passages).T
    return np.argsort(-similarity, axis=1, kind="stable")


def score(dataset: Dataset, ranking: Ranking) -> PerQuery:
    """Return every metric of a ranking, per query."""
    from ir_measures import RR, P, Qrel, R, ScoredDoc, iter_calc, nDCG

    measures = {f"NDCG@{k}": nDCG @ k for k in (1, 3, 10)}
    measures |= {f"P@{k}": P @ k for k in _F1}
    measures |= {f"Recall@{k}": R @ k for k in (1, 3, 5, 10)}
    measures["MRR@10"] = RR  # RR has no cutoff, but `best` contains only the top 10
    contents = dataset.contents
    passages = list(contents.passages)
    qrels = [
        Qrel(query, passage, grade)
        for query, judged in contents.relevant.items()
        for passage, grade in judged.items()
    ]
    best = [
        ScoredDoc(query, passages[passage], -float(place))
        for query, row in zip(contents.queries, ranking[:, :DEPTH].tolist(), strict=True)
        for place, passage in enumerate(row)
    ]
    row_of = {query: row for row, query in enumerate(contents.queries)}
    names = {measure: name for name, measure in measures.items()}
    found: PerQuery = {name: np.zeros(len(row_of)) for name in measures}
    for metric in iter_calc(list(names), qrels, best):
        found[names[metric.measure]][row_of[metric.query_id]] = metric.value
    return _with_f1(found)


def _with_f1(found: PerQuery) -> PerQuery:
    """Return the metrics with each precision replaced by F1."""
    figures: PerQuery = {}
    for k in _F1:
        precision, recall = found.pop(f"P@{k}"), found[f"Recall@{k}"]
        both = precision + recall
        figures[f"NDCG@{k}"] = found.pop(f"NDCG@{k}")
        figures[f"F1@{k}"] = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return figures | found


def score_reversed(dataset: Dataset, ranking: Ranking) -> npt.NDArray[np.float64]:
    """Return NDCG@3 of the top three passages in reverse order (see published.py), float64[queries]."""
    return score(dataset, ranking[:, 2::-1])["NDCG@3"]


def _unit(rows: Array) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))
