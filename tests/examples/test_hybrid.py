"""Tests of docs/examples/split_passages.py and docs/examples/hybrid_search.py."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from koe5_onnx import Embedder

pa = pytest.importorskip("pyarrow", reason="the examples read Parquet. Run pip install --group bench")
pq = pytest.importorskip("pyarrow.parquet")

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"
MAX_TOKENS = 40
LONG = "서울은 대한민국의 수도이며 가장 큰 도시이다. 한강이 흐른다!\n" * 8 + "쉼표만 있는 아주 긴 문장, " * 30
PASSAGES = {
    "bank": "은행업을 영위하려면 금융위원회의 인가를 받아야 한다.",
    "whale": "고래는 바다에 사는 포유류이다.",
    "long": LONG,
    "empty": "",
}


@pytest.fixture(scope="module")
def embedder(artifact):
    with Embedder.open(artifact) as opened:
        yield opened


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    pq.write_table(pa.table({"doc_id": list(PASSAGES), "contents": list(PASSAGES.values())}), file)
    return file


@pytest.fixture(scope="module")
def parts(corpus, run_example, artifact):
    file = corpus.with_name("parts.parquet")
    done = run_example("split_passages", corpus, file, "--artifact", artifact, "--max-tokens", MAX_TOKENS)
    assert done.returncode == 0, done.stderr
    return pq.read_table(file).to_pylist()


def test_parts_respect_the_limit_and_lose_no_word(parts, embedder):
    assert len({part["doc_id"] for part in parts}) == len(parts)
    assert embedder.count_tokens([part["contents"] for part in parts], "passage").max() <= MAX_TOKENS
    for page, text in PASSAGES.items():
        joined = " ".join(part["contents"] for part in parts if part["page_id"] == page)
        assert joined.split() == text.split()
    assert len(parts) > len(PASSAGES) + 5, "the long passage was not split"


def test_adjacent_parts_do_not_fit_into_one(parts, embedder):
    found = [part["contents"] for part in parts if part["page_id"] == "long"]
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(found)]
    assert embedder.count_tokens(pairs, "passage").min() > MAX_TOKENS


def test_split_rejects_a_missing_corpus(run_example, artifact, tmp_path):
    done = run_example("split_passages", tmp_path / "none", tmp_path / "parts", "--artifact", artifact)
    assert done.returncode == 1
    assert "is not a file. Pass a parquet file." in done.stderr


@pytest.fixture(scope="module")
def hybrid():
    """Return the module hybrid_search, imported with docs/examples on sys.path."""
    for name in ("bm25s", "kiwipiepy"):
        pytest.importorskip(name, reason="run make examples")
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("hybrid_search", EXAMPLES / "hybrid_search.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def embedded(hybrid, parts, embedder, tmp_path_factory):
    file = tmp_path_factory.mktemp("embedded") / "part-00000000.parquet"
    embeddings = embedder.encode_passages([part["contents"] for part in parts])
    pq.write_table(pa.Table.from_pylist(parts).append_column("embedding", pa.array(list(embeddings))), file)
    return file.parent


def test_fusion_adds_reciprocal_ranks(hybrid):
    words, vectors = np.array([3.0, 2.0, -np.inf]), np.array([0.1, 0.9, 0.5])
    np.testing.assert_allclose(hybrid.fuse(words, vectors), [1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 62])


def test_figures_of_a_ranking(hybrid):
    ndcg, recall, hit = hybrid.figures(["a", "b", "c"], {"b", "x"})
    assert ndcg == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))
    assert (recall, hit) == (0.5, 0)


def test_morphemes_exclude_particles(hybrid):
    from kiwipiepy import Kiwi

    assert hybrid.morphemes(Kiwi(), "은행을 AI!") == hybrid.morphemes(Kiwi(), "은행은 ai?") == ["은행", "ai"]


def test_the_score_of_a_passage_is_that_of_its_best_part(hybrid, embedded, parts, embedder):
    passages = hybrid.Passages(embedded)
    assert passages.doc_ids == list(PASSAGES)
    query = embedder.encode_queries(["서울"])[0]
    cosines = embedder.encode_passages([part["contents"] for part in parts]) @ query
    best = [max(c for c, p in zip(cosines, parts, strict=True) if p["page_id"] == page) for page in PASSAGES]
    np.testing.assert_allclose(passages.vector_scores(query), best, rtol=1e-5)


def test_a_query_finds_its_words(hybrid, embedded, run_example, artifact, hits_of):
    done = run_example(
        "hybrid_search", embedded, "--artifact", artifact, "--query", "금융위원회는 무엇을 하나요?"
    )
    assert done.returncode == 0, done.stderr
    hits = hits_of(done.stdout)["금융위원회는 무엇을 하나요?"]
    assert hits[0][0] == "bank" or hits[1][0] == "bank", "the only passage with the word is first by BM25"


def test_metrics_of_questions_are_written(hybrid, embedded, run_example, artifact, tmp_path):
    rows = {
        "query": ["금융위원회는 무엇을 하나요?", "고래는 어디에 사나요?"],
        "retrieval_gt": [[["bank"]], [["whale"]]],
    }
    pq.write_table(pa.table(rows), tmp_path / "qa.parquet")
    options = ("--questions", tmp_path / "qa.parquet", "--json", tmp_path / "figures.json")
    done = run_example("hybrid_search", embedded, "--artifact", artifact, *options)
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert measured["BM25, morphemes"]["hit@1"] == 1
    assert measured["hybrid"]["hybrid gains"] == {"NDCG@10": 0, "low": 0, "high": 0}


def test_hybrid_rejects_a_corpus_without_embeddings(hybrid, corpus, run_example, artifact):
    done = run_example("hybrid_search", corpus, "--artifact", artifact, "--query", "서울")
    assert done.returncode == 1
    assert "no column 'embedding'. Embed it with koe5-onnx bulk." in done.stderr
