"""Hybrid search in Korean: BM25 over morphemes and KoE5 vectors, combined by reciprocal rank fusion.

pip install '.[cpu,bulk]' bm25s 'kiwipiepy>=0.24'

python docs/examples/split_passages.py corpus.parquet parts.parquet --artifact koe5-int8
koe5-onnx bulk parts.parquet embedded --artifact koe5-int8 --text-column contents --prompt-name passage
python docs/examples/hybrid_search.py embedded --artifact koe5-int8 --query "예비인가가 필요한가요?"
python docs/examples/hybrid_search.py embedded --artifact koe5-int8 --questions qa.parquet
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import numpy.typing as npt
import pyarrow.dataset
import pyarrow.parquet
from kiwipiepy import Kiwi
from passages import Hit, show

from koe5_onnx import Embedder, InputError

Floats = npt.NDArray[np.float64]
"""Scores of one query, float64[passages]: higher is better, -inf for a passage that was not found."""
Words = Callable[[str], list[str]]

RRF_K = 60
"""Reduces the weight of the first ranks. Source: https://doi.org/10.1145/1571941.1572114"""
DEPTH = 100
"""Number of best passages of each search that are fused."""

FIGURES = ("NDCG@10", "Recall@10", "hit@1")


def morphemes(kiwi: Kiwi, text: str) -> list[str]:
    """Return the words of a text in lower case, without particles, endings, affixes and punctuation.

    Tags: https://github.com/bab2min/kiwipiepy#품사-태그
    """
    kept = ("SL", "SH", "SN", "XR")  # foreign words, hanja, numbers, roots
    return [
        word.form.lower() for word in kiwi.tokenize(text) if word.tag[0] not in "JESX" or word.tag in kept
    ]


def fuse(*searches: Floats) -> Floats:
    """Return the sum of 1 / (60 + rank) over the searches with a passage among their best 100; -inf if none.

    This is reciprocal rank fusion.
    """
    fused = np.zeros(len(searches[0]))
    for scores in searches:
        best = np.argsort(-scores, kind="stable")[:DEPTH]
        best = best[np.isfinite(scores[best])]
        fused[best] += 1 / (RRF_K + 1 + np.arange(len(best)))
    return np.where(fused > 0, fused, -np.inf)


class Passages:
    """Passages with the vectors of their parts.

    Args:
        folder: Parquet with the columns doc_id, contents and embedding, as `koe5-onnx bulk` writes it. If it
            also has the column page_id, which split_passages.py adds, each row is one part of the passage
            that page_id names. Otherwise each row is a whole passage.
    """

    def __init__(self, folder: Path) -> None:
        dataset = pyarrow.dataset.dataset(folder, format="parquet")
        if missing := {"doc_id", "contents", "embedding"} - set(dataset.schema.names):
            raise InputError(f"{folder} has no column {sorted(missing)[0]!r}. Embed it with koe5-onnx bulk.")
        table = dataset.to_table()
        pages = table["page_id" if "page_id" in table.column_names else "doc_id"].to_pylist()
        texts: dict[str, list[str]] = {}
        for page, text in zip(pages, table["contents"].to_pylist(), strict=True):
            texts.setdefault(page, []).append(text)
        self.doc_ids = list(texts)
        self.contents = [" ".join(parts) for parts in texts.values()]
        row_of = {page: row for row, page in enumerate(texts)}
        self.rows = np.array([row_of[page] for page in pages])
        """The passage of each part: int64[parts]."""
        self.vectors = np.array(table["embedding"].to_pylist(), np.float32)
        """float32[parts, dim]."""

    def vector_scores(self, query: npt.NDArray[np.float32]) -> Floats:
        """Return the cosine of each passage's best part."""
        best = np.full(len(self.doc_ids), -np.inf)
        np.maximum.at(best, self.rows, (self.vectors @ query).astype(np.float64))
        return best

    def word_search(self, words: Words) -> Callable[[str], Floats]:
        """Index the words of each passage, and return a function from a query to its BM25 scores."""
        index = bm25s.BM25()
        index.index([words(text) for text in self.contents], show_progress=False)

        def scores_of(query: str) -> Floats:
            scores = index.get_scores_from_ids(index.get_tokens_ids(words(query))).astype(np.float64)
            return np.where(scores > 0, scores, -np.inf)

        return scores_of

    def hits(self, scores: Floats, top: int) -> list[Hit]:
        """Return the best passages, best first."""
        best = [row for row in np.argsort(-scores, kind="stable")[:top].tolist() if np.isfinite(scores[row])]
        return [Hit(self.doc_ids[row], self.contents[row], float(scores[row])) for row in best]


def figures(ranked: Sequence[str], relevant: set[str]) -> tuple[float, float, float]:
    """Return NDCG@10, Recall@10 and hit@1 of one query."""
    gains = np.array([doc_id in relevant for doc_id in ranked[:10]], float)
    discounts = 1 / np.log2(np.arange(2, 12))
    ideal = discounts[: len(relevant)].sum()
    return gains @ discounts[: len(gains)] / ideal, gains.sum() / len(relevant), gains[:1].sum()


def measure(found: dict[str, list[list[str]]], questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean figures of each search, and how much NDCG@10 hybrid search gains over it.

    The gain has a 95 % interval by paired bootstrap over the questions.
    """
    relevant = [{doc_id for group in one["retrieval_gt"] for doc_id in group} for one in questions]
    per_query = {
        name: np.array([figures(*one) for one in zip(ranked, relevant, strict=True)])
        for name, ranked in found.items()
    }
    drawn = np.random.default_rng(0).integers(len(questions), size=(10_000, len(questions)))
    result = {}
    for name, values in per_query.items():
        gain = per_query["hybrid"][:, 0] - values[:, 0]
        low, high = np.quantile(gain[drawn].mean(axis=1), (0.025, 0.975))
        result[name] = {
            **dict(zip(FIGURES, values.mean(axis=0).tolist(), strict=True)),
            "hybrid gains": {"NDCG@10": float(gain.mean()), "low": float(low), "high": float(high)},
        }
    return result


def main() -> None:
    """Answer queries, or measure the searches on questions with known answers."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("passages", type=Path, help="parquet file or folder, embedded by koe5-onnx bulk")
    parser.add_argument("--artifact", required=True, help="folder or Hub id of the artifact that embedded it")
    parser.add_argument("--query", action="append", default=[], help="a question; can be repeated")
    parser.add_argument("--top", type=int, default=5, help="hits per query (default: %(default)s)")
    parser.add_argument(
        "--questions", type=Path, help="measure on this parquet file with the columns query and retrieval_gt"
    )
    parser.add_argument("--json", type=Path, help="with --questions: also write the figures to this file")
    args = parser.parse_args()
    passages, kiwi = Passages(args.passages), Kiwi()
    by_words = passages.word_search(lambda text: morphemes(kiwi, text))
    questions = pyarrow.parquet.read_table(args.questions).to_pylist() if args.questions else []
    queries = args.query or [one["query"] for one in questions]
    with Embedder.open(args.artifact) as embedder:
        vectors = [passages.vector_scores(query) for query in embedder.encode_queries(queries)]
    words = [by_words(query) for query in queries]
    hybrid = [fuse(a, b) for a, b in zip(words, vectors, strict=True)]
    if args.query:
        show(queries, [passages.hits(scores, args.top) for scores in hybrid])
        return
    spaces = passages.word_search(str.split)
    searches = {
        "BM25, split at spaces": map(spaces, queries),
        "BM25, morphemes": words,
        "vectors": vectors,
        "hybrid": hybrid,
    }
    measured = measure(
        {
            name: [[hit.doc_id for hit in passages.hits(one, 10)] for one in scores]
            for name, scores in searches.items()
        },
        questions,
    )
    for name, values in measured.items():
        shown = "  ".join(f"{figure} {100 * values[figure]:.1f}" for figure in FIGURES)
        print(f"{name:22}  {shown}")
    if args.json:
        args.json.write_text(json.dumps(measured, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
