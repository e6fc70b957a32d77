"""LangChain: its standard tests, and correct embeddings in one of its vector stores."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tolerances import SERVED

pytest.importorskip(
    "langchain_core.embeddings", reason="the extra langchain is not installed. Run make integrations"
)
standard_unit = pytest.importorskip(
    "langchain_tests.unit_tests", reason="langchain-tests is not installed. Run make integrations"
)
standard = pytest.importorskip("langchain_tests.integration_tests")

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from koe5_onnx import ArtifactError, InputError
from koe5_onnx.integrations.langchain import Koe5Embeddings


class Tiny:
    """Settings of the standard tests: the class and the tiny artifact."""

    artifact = None

    @pytest.fixture(autouse=True)
    def _artifact(self, artifact_path):
        type(self).artifact = artifact_path

    @property
    def embeddings_class(self):
        return Koe5Embeddings

    @property
    def embedding_model_params(self):
        return {"artifact": self.artifact, "threads": 1}


class TestStandardUnit(Tiny, standard_unit.EmbeddingsUnitTests):
    """LangChain's unit tests."""


class TestStandardIntegration(Tiny, standard.EmbeddingsIntegrationTests):
    """LangChain's integration tests."""


def test_documents_get_the_passage_prompt_and_queries_the_query_prompt(embedder, texts, queries, passages):
    embeddings = Koe5Embeddings(embedder)
    np.testing.assert_allclose(embeddings.embed_documents(texts), passages, atol=SERVED, rtol=0)
    for text, query in zip(texts, queries, strict=True):
        np.testing.assert_allclose(embeddings.embed_query(text), query, atol=SERVED, rtol=0)


def test_shortened_embeddings(short, texts):
    embeddings = Koe5Embeddings(short, dim=8)
    (query,), passages = short.encode_queries(texts[:1], dim=8), short.encode_passages(texts, dim=8)
    for row in (embeddings.embed_query(texts[0]), asyncio.run(embeddings.aembed_query(texts[0]))):
        np.testing.assert_array_equal(np.float32(row), query)
    for rows in (embeddings.embed_documents(texts), asyncio.run(embeddings.aembed_documents(texts))):
        np.testing.assert_array_equal(np.float32(rows), passages)
    with pytest.raises(InputError, match="dim is 9: expected one of 8, 16, 64"):
        Koe5Embeddings(short, dim=9)


def test_asynchronous_methods_agree(embedder, texts, queries, passages):
    embeddings = Koe5Embeddings(embedder)

    async def embed():
        return await embeddings.aembed_documents(texts), await asyncio.gather(
            *map(embeddings.aembed_query, texts)
        )

    found_passages, found_queries = asyncio.run(embed())
    np.testing.assert_allclose(found_passages, passages, atol=SERVED, rtol=0)
    np.testing.assert_allclose(found_queries, queries, atol=SERVED, rtol=0)


def test_a_vector_store_ranks_like_the_embedder(embedder, texts, queries, passages):
    store = InMemoryVectorStore(Koe5Embeddings(embedder))
    store.add_documents([Document(text, id=str(number)) for number, text in enumerate(texts)])
    found = store.similarity_search_with_score(texts[0], k=len(texts))
    scores = passages @ queries[0]
    assert [int(document.id) for document, _ in found] == np.argsort(-scores).tolist()
    np.testing.assert_allclose([score for _, score in found], np.sort(scores)[::-1], atol=SERVED, rtol=0)


def test_no_documents(embedder):
    assert Koe5Embeddings(embedder).embed_documents([]) == []


def test_a_missing_artifact_is_reported():
    with pytest.raises(ArtifactError, match="no-such-artifact"):
        Koe5Embeddings("no-such-artifact")
