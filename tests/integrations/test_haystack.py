"""Haystack: both components alone, asynchronously, in pipelines, and saved as YAML."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tolerances import SERVED

pytest.importorskip("haystack", reason="the extra haystack is not installed. Run make integrations")

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

from koe5_onnx import ArtifactError, InputError
from koe5_onnx.integrations.haystack import Koe5DocumentEmbedder, Koe5TextEmbedder

SAME = {"atol": SERVED, "rtol": 0}


@pytest.fixture
def documents(texts):
    return [Document(content=text, id=str(number)) for number, text in enumerate(texts)]


@pytest.fixture
def text_embedder(artifact_path):
    return Koe5TextEmbedder(artifact_path, threads=1)


@pytest.fixture
def document_embedder(artifact_path):
    return Koe5DocumentEmbedder(artifact_path, threads=1)


def embeddings_of(answer):
    return [document.embedding for document in answer["documents"]]


def test_texts_get_the_query_prompt_and_documents_the_passage_prompt(
    text_embedder, document_embedder, texts, documents, queries, passages
):
    for text, query in zip(texts, queries, strict=True):
        np.testing.assert_allclose(text_embedder.run(text)["embedding"], query, **SAME)
    answer = document_embedder.run(documents)
    np.testing.assert_allclose(embeddings_of(answer), passages, **SAME)
    assert [document.id for document in answer["documents"]] == [document.id for document in documents]
    assert all(document.embedding is None for document in documents), "the caller's documents are changed"
    assert document_embedder.run([]) == {"documents": []}


def test_asynchronous_methods_agree(text_embedder, document_embedder, texts, documents, queries, passages):
    async def embed():
        return await asyncio.gather(
            document_embedder.run_async(documents), *map(text_embedder.run_async, texts)
        )

    answer, *found = asyncio.run(embed())
    np.testing.assert_allclose(embeddings_of(answer), passages, **SAME)
    np.testing.assert_allclose([one["embedding"] for one in found], queries, **SAME)


def test_metadata_is_prepended(artifact_path, embedder):
    documents = [
        Document(content="서울은 수도이다.", meta={"title": "서울", "year": 2024, "author": None}),
        Document(content=None, meta={"title": "부산"}),
        Document(content="고래", meta={}),
    ]
    components = Koe5DocumentEmbedder(
        artifact_path, meta_fields_to_embed=["title", "author", "year"], embedding_separator=" | ", threads=1
    )
    expected = embedder.encode_passages(["서울 | 2024 | 서울은 수도이다.", "부산 | ", "고래"])
    np.testing.assert_allclose(embeddings_of(components.run(documents)), expected, **SAME)


def indexing_and_querying(text_embedder, document_embedder, store):
    indexing, querying = Pipeline(), Pipeline()
    indexing.add_component("embedder", document_embedder)
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    querying.add_component("embedder", text_embedder)
    querying.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=5))
    querying.connect("embedder.embedding", "retriever.query_embedding")
    return indexing, querying


def test_pipelines_rank_like_the_embedder(
    text_embedder, document_embedder, documents, texts, queries, passages
):
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing, querying = indexing_and_querying(text_embedder, document_embedder, store)
    indexing.run({"embedder": {"documents": documents}})
    found = querying.run({"embedder": {"text": texts[0]}})["retriever"]["documents"]
    scores = passages @ queries[0]
    assert [int(document.id) for document in found] == np.argsort(-scores).tolist()
    np.testing.assert_allclose([document.score for document in found], np.sort(scores)[::-1], **SAME)


def test_pipelines_can_be_saved_and_loaded(artifact_path, documents, texts, passages):
    pipeline = Pipeline()
    component = Koe5DocumentEmbedder(
        artifact_path, meta_fields_to_embed=["title"], embedding_separator="; ", threads=1, overflow="error"
    )
    pipeline.add_component("embedder", component)
    pipeline.add_component("query", Koe5TextEmbedder(str(artifact_path), threads=1, overflow="error"))
    text = pipeline.dumps()
    loaded = Pipeline.loads(text)
    assert loaded.dumps() == text
    assert component.to_dict()["init_parameters"] == {
        "artifact": str(artifact_path),
        "meta_fields_to_embed": ["title"],
        "embedding_separator": "; ",
        "dim": None,
        "threads": 1,
        "overflow": "error",
    }
    answer = loaded.run({"embedder": {"documents": documents}, "query": {"text": texts[0]}})
    np.testing.assert_allclose(embeddings_of(answer["embedder"]), passages, **SAME)
    opened = {id(loaded.get_component(name)._opened.embedder) for name in ("embedder", "query")}
    assert len(opened) == 1, "two components of one pipeline hold two copies of the weights"


def test_shortened_embeddings(allowed, short, texts, documents):
    text_embedder = Koe5TextEmbedder(allowed, dim=8, threads=1)
    document_embedder = Koe5DocumentEmbedder.from_dict(
        Koe5DocumentEmbedder(allowed, dim=8, threads=1).to_dict()
    )
    (query,), passages = short.encode_queries(texts[:1], dim=8), short.encode_passages(texts, dim=8)
    for answer in (text_embedder.run(texts[0]), asyncio.run(text_embedder.run_async(texts[0]))):
        np.testing.assert_array_equal(np.float32(answer["embedding"]), query)
    for answer in (document_embedder.run(documents), asyncio.run(document_embedder.run_async(documents))):
        np.testing.assert_array_equal(np.float32(embeddings_of(answer)), passages)
    with pytest.raises(InputError, match="dim is 9: expected one of 8, 16, 64"):
        Koe5TextEmbedder(allowed, dim=9, threads=1).warm_up()


def test_the_artifact_is_opened_by_warm_up():
    component = Koe5TextEmbedder("no-such-artifact")
    with pytest.raises(ArtifactError, match="no-such-artifact"):
        component.warm_up()


def test_inputs_of_the_wrong_type_are_rejected(text_embedder, document_embedder, documents):
    with pytest.raises(TypeError, match="text is a list: expected a str"):
        text_embedder.run(documents)
    for wrong in ("서울", ["서울"], documents[0]):
        with pytest.raises(TypeError, match="documents must be a list"):
            document_embedder.run(wrong)
