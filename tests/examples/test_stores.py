"""The examples of vector stores, compared with an exhaustive search in numpy."""

from __future__ import annotations

import importlib.util
from itertools import count

import numpy as np
import pytest
from tolerances import APPROXIMATE_RECALL_MIN, FIGURE_ATOL, PRINTED_SCORE_ATOL

from koe5_onnx import Embedder

pa = pytest.importorskip("pyarrow", reason="the examples read Parquet. Run pip install --group bench")
pq = pytest.importorskip("pyarrow.parquet")

STORES = {"faiss": "faiss", "lancedb": "lancedb", "qdrant": "qdrant_client", "pgvector": "pgvector"}
"""Import name of the library that each example requires, by the name of the example."""
PASSAGES = {
    "seoul": "서울은 대한민국의 수도이며 가장 큰 도시이다.",
    "whale": "고래는 바다에 사는 포유류이다.",
    "bank": "은행업을 영위하려면 금융위원회의 인가를 받아야 한다.\n둘째 줄.",
    'doc 5 - a\'s "page".pdf - 3': "The patent was registered in 2008.",
    "rust": "Rust is a language without a garbage collector.",
    "empty": "",
}
QUERIES = ["대한민국의 수도는 어디인가요?", "은행을 하려면 누가 인가하나요?", "What lives in the sea?"]
TOP = 4

pytestmark = pytest.mark.filterwarnings("ignore::koe5_onnx.TruncationWarning")


@pytest.fixture(params=STORES)
def example(request):
    """Return the name of an example. Skip if its library is not installed."""
    if importlib.util.find_spec(STORES[request.param]) is None:
        pytest.skip(f"{STORES[request.param]} is not installed. Run make examples")
    return request.param


_numbers = count()


@pytest.fixture
def store(example, tmp_path, request):
    """Return a path for a new store, or the connection string of a new database."""
    if example != "pgvector":
        return tmp_path / "store"
    import psycopg

    server = request.getfixturevalue("postgres")
    database = f"pages{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    return server.replace("/postgres?", f"/{database}?")


@pytest.fixture
def run(example, store, artifact, run_example):
    """Return a function that runs the example on its store with additional arguments."""
    return lambda *arguments: run_example(
        f"{example}_search", "--artifact", artifact, "--store", store, *arguments
    )


@pytest.fixture
def ask(run, hits_of):
    """Return a function that runs the example with queries and returns the hits of each query."""

    def ask(queries, top, *arguments):
        done = run(*arguments, "--top", top, *(part for query in queries for part in ("--query", query)))
        assert done.returncode == 0, done.stderr
        found = hits_of(done.stdout)
        assert list(found) == list(queries)
        return list(found.values())

    return ask


@pytest.fixture(scope="session")
def embedder(artifact):
    with Embedder.open(artifact) as opened:
        yield opened


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus.parquet", PASSAGES)


def write_corpus(file, passages, **columns):
    """Write a corpus with two passages per row group."""
    table = pa.table({"doc_id": list(passages), "contents": list(passages.values()), **columns})
    pq.write_table(table, file, row_group_size=2)
    return file


def require_hits(found, doc_ids, scores, top):
    """Check that the hits are the `top` highest of `scores`, best first; ties may be in any order."""
    row_of = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    best = -np.sort(-scores)[:top]
    assert len({doc_id for doc_id, _ in found}) == len(best)
    np.testing.assert_allclose([score for _, score in found], best, rtol=0, atol=PRINTED_SCORE_ATOL)
    np.testing.assert_allclose(
        [scores[row_of[doc_id]] for doc_id, _ in found], best, rtol=0, atol=PRINTED_SCORE_ATOL
    )


def test_search_equals_brute_force(ask, corpus, embedder):
    scores = embedder.encode_queries(QUERIES) @ embedder.encode_passages(list(PASSAGES.values())).T
    assert np.ptp(scores, axis=1).min() > 100 * PRINTED_SCORE_ATOL, (
        "all passages are alike, so no ranking can be compared"
    )
    at_once = ask(QUERIES, TOP, "--corpus", corpus)
    for found, expected in zip(at_once, scores, strict=True):
        require_hits(found, list(PASSAGES), expected, TOP)
    assert ask(QUERIES, TOP) == at_once, "the store was not kept"


def test_more_hits_than_passages(ask, corpus, embedder):
    scores = embedder.encode_queries(QUERIES[:1]) @ embedder.encode_passages(list(PASSAGES.values())).T
    (found,) = ask(QUERIES[:1], 50, "--corpus", corpus)
    require_hits(found, list(PASSAGES), scores[0], len(PASSAGES))


def test_embeddings_of_the_corpus_are_used(ask, tmp_path, embedder):
    """The corpus has embeddings in reverse order, so the hits show which embeddings were stored."""
    embeddings = embedder.encode_passages(list(PASSAGES.values()))[::-1]
    corpus = write_corpus(tmp_path / "corpus.parquet", PASSAGES, embedding=list(embeddings))
    (found,) = ask(QUERIES[:1], TOP, "--corpus", corpus)
    require_hits(found, list(PASSAGES), (embedder.encode_queries(QUERIES[:1]) @ embeddings.T)[0], TOP)


def test_a_folder_of_files(ask, tmp_path, embedder):
    folder = tmp_path / "corpus"
    folder.mkdir()
    parts = [dict(list(PASSAGES.items())[start : start + 3]) for start in (0, 3)]
    for number, part in enumerate(parts):
        write_corpus(folder / f"{number}.parquet", part)
    scores = embedder.encode_queries(QUERIES[:1]) @ embedder.encode_passages(list(PASSAGES.values())).T
    (found,) = ask(QUERIES[:1], TOP, "--corpus", folder)
    require_hits(found, list(PASSAGES), scores[0], TOP)


def test_a_filled_store_is_not_filled_again(run, ask, corpus):
    before = ask(QUERIES, TOP, "--corpus", corpus)
    again = run("--corpus", corpus)
    assert again.returncode == 1
    assert "exists" in again.stderr
    assert ask(QUERIES, TOP) == before


def test_a_failed_fill_leaves_no_store(run, ask, tmp_path, corpus):
    broken = write_corpus(tmp_path / "broken.parquet", {**PASSAGES, "null": None})
    failed = run("--corpus", broken)
    assert failed.returncode == 1
    assert "null in doc_id or contents" in failed.stderr
    assert run("--query", "서울").returncode == 1, "an incomplete store was kept"
    assert len(ask(QUERIES, TOP, "--corpus", corpus)) == len(QUERIES)


def test_a_corpus_without_contents(run, tmp_path):
    file = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"doc_id": ["a"], "text": ["b"]}), file)
    done = run("--corpus", file)
    assert done.returncode == 1
    assert "no column 'contents', only ['doc_id', 'text']" in done.stderr


@pytest.fixture(scope="module")
def benchmark(autorag, embedder, tmp_path_factory):
    """Return the AutoRAG benchmark, a file of its embedded pages, and the cosines of queries and pages."""
    pytest.importorskip("ir_measures", reason="computes retrieval metrics. Run pip install --group bench")
    from benchmarks.corpora import load

    dataset = load(str(autorag))
    embeddings = embedder.encode_passages(dataset.passages)
    file = tmp_path_factory.mktemp("pages") / "pages.parquet"
    embedded = write_corpus(file, dataset.contents.passages, embedding=list(embeddings))
    return dataset, embedded, embedder.encode_queries(dataset.queries) @ embeddings.T


def figures(dataset, ranking):
    from benchmarks.retrieval import score

    return {name: values.mean() for name, values in score(dataset, ranking).items()}


def test_korean_retrieval_equals_brute_force(example, ask, autorag, benchmark):
    """The FAISS example embeds the 720 pages. Other examples read the embeddings from a file to save time."""
    dataset, embedded, scores = benchmark
    pages = list(dataset.contents.passages)
    found = ask(
        dataset.queries, 10, "--corpus", autorag / "corpus.parquet" if example == "faiss" else embedded
    )
    for hits, expected in zip(found, scores, strict=True):
        require_hits(hits, pages, expected, 10)
    row_of = {doc_id: row for row, doc_id in enumerate(pages)}
    through_store = figures(dataset, np.array([[row_of[doc_id] for doc_id, _ in hits] for hits in found]))
    by_numpy = figures(dataset, np.argsort(-scores, axis=1, kind="stable"))
    assert through_store == pytest.approx(by_numpy, abs=FIGURE_ATOL)
    shuffled = figures(dataset, np.random.default_rng(0).permuted(np.tile(range(720), (114, 1)), axis=1))
    assert through_store["Recall@10"] > 5 * shuffled["Recall@10"] > 0, "no better than chance"


def test_approximate_search_finds_nearly_the_same(example, ask, benchmark):
    if example == "qdrant":
        pytest.skip("Qdrant's local mode searches exhaustively; only its server has an approximate index")
    dataset, embedded, scores = benchmark
    found = ask(dataset.queries, 10, "--corpus", embedded, "--approximate")
    pages = np.array(list(dataset.contents.passages))
    best = pages[np.argsort(-scores, axis=1)[:, :10]]
    same = [len({doc_id for doc_id, _ in hits} & set(row)) for hits, row in zip(found, best, strict=True)]
    assert np.mean(same) / 10 >= APPROXIMATE_RECALL_MIN
