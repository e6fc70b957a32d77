"""LlamaIndex: embedding methods, serialization, and a vector index."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tolerances import SERVED

pytest.importorskip(
    "llama_index.core", reason="the extra llama-index is not installed. Run make integrations"
)

from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings.utils import resolve_embed_model
from llama_index.core.schema import TextNode

from koe5_onnx import ArtifactError, InputError
from koe5_onnx.integrations.llama_index import Koe5Embedding

SAME = {"atol": SERVED, "rtol": 0}


@pytest.fixture
def embedding(artifact_path):
    return Koe5Embedding(artifact_path, threads=1)


def test_texts_get_the_passage_prompt_and_queries_the_query_prompt(embedding, texts, queries, passages):
    np.testing.assert_allclose(embedding.get_text_embedding_batch(texts), passages, **SAME)
    for text, query, passage in zip(texts, queries, passages, strict=True):
        np.testing.assert_allclose(embedding.get_query_embedding(text), query, **SAME)
        np.testing.assert_allclose(embedding.get_text_embedding(text), passage, **SAME)


def test_shortened_embeddings(allowed, short, texts):
    embedding = Koe5Embedding.from_dict(Koe5Embedding(allowed, dim=8, threads=1).to_dict())
    (query,), passages = short.encode_queries(texts[:1], dim=8), short.encode_passages(texts, dim=8)
    for row in (
        embedding.get_query_embedding(texts[0]),
        asyncio.run(embedding.aget_query_embedding(texts[0])),
    ):
        np.testing.assert_array_equal(np.float32(row), query)
    for rows in (
        embedding.get_text_embedding_batch(texts),
        asyncio.run(embedding.aget_text_embedding_batch(texts)),
    ):
        np.testing.assert_array_equal(np.float32(rows), passages)
    with pytest.raises(InputError, match="dim is 9: expected one of 8, 16, 64"):
        Koe5Embedding(allowed, dim=9, threads=1)


def test_asynchronous_methods_agree(embedding, texts, queries, passages):
    async def embed():
        return (
            await asyncio.gather(*map(embedding.aget_query_embedding, texts)),
            await asyncio.gather(*map(embedding.aget_text_embedding, texts)),
            await embedding.aget_text_embedding_batch(texts),
        )

    for found, expected in zip(asyncio.run(embed()), (queries, passages, passages), strict=True):
        np.testing.assert_allclose(found, expected, **SAME)


@pytest.mark.parametrize("batch_size", [1, 2, 2048])
def test_embed_batch_size_does_not_change_embeddings(artifact_path, texts, passages, batch_size):
    embedding = Koe5Embedding(artifact_path, threads=1, embed_batch_size=batch_size)
    np.testing.assert_allclose(embedding.get_text_embedding_batch(texts), passages, **SAME)


def test_an_index_ranks_like_the_embedder(embedding, texts, queries, passages):
    nodes = [TextNode(text=text, id_=str(number)) for number, text in enumerate(texts) if text]
    index = VectorStoreIndex(nodes, embed_model=embedding)
    found = index.as_retriever(similarity_top_k=len(nodes)).retrieve(texts[0])
    scores = {str(number): score for number, score in enumerate(passages @ queries[0]) if texts[number]}
    assert [one.node.node_id for one in found] == sorted(scores, key=scores.__getitem__, reverse=True)
    np.testing.assert_allclose([one.score for one in found], sorted(scores.values(), reverse=True), **SAME)


def test_serialization_keeps_options_and_shares_the_embedder(artifact_path, texts, queries):
    embedding = Koe5Embedding(artifact_path, threads=1, max_batch_tokens=64, embed_batch_size=7)
    saved = embedding.to_dict()
    assert saved["class_name"] == "Koe5Embedding"
    loaded = Koe5Embedding.from_dict(saved)
    assert loaded.to_dict() == saved
    assert loaded._embedder is embedding._embedder
    assert (loaded._embedder.max_batch_tokens, loaded.embed_batch_size) == (64, 7)
    np.testing.assert_allclose(loaded.get_query_embedding(texts[0]), queries[0], **SAME)


def test_llama_index_accepts_the_embedding(embedding):
    assert resolve_embed_model(embedding) is embedding
    assert embedding.model_name == "tiny-seeded"
    assert Koe5Embedding(embedding.artifact, threads=1, model_name="mine").model_name == "mine"


def test_a_missing_artifact_is_reported():
    with pytest.raises(ArtifactError, match="no-such-artifact"):
        Koe5Embedding("no-such-artifact")
