"""Chroma: collections in memory and on disk, reopened with and without the embedding function."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import SERVED

chromadb = pytest.importorskip("chromadb", reason="the extra chroma is not installed. Run make integrations")

from chromadb.config import Settings
from chromadb.utils.embedding_functions import DefaultEmbeddingFunction

from koe5_onnx import ArtifactError, InputError
from koe5_onnx.integrations.chroma import Koe5EmbeddingFunction

SAME = {"atol": SERVED, "rtol": 0}
SETTINGS = Settings(anonymized_telemetry=False, allow_reset=True)


@pytest.fixture(autouse=True)
def _no_default_model(monkeypatch):
    """Fail if Chroma uses its default model, which it would download."""

    def fail(self, input):  # noqa: A002 - Chroma checks the parameter names
        raise AssertionError("Chroma's default model is used")

    monkeypatch.setattr(DefaultEmbeddingFunction, "__call__", fail)


@pytest.fixture
def function(artifact_path):
    return Koe5EmbeddingFunction(artifact_path, threads=1)


@pytest.fixture
def client():
    client = chromadb.EphemeralClient(SETTINGS)
    yield client
    client.reset()


def filled(client, function, texts):
    collection = client.create_collection("pages", embedding_function=function)
    collection.add(ids=[str(number) for number in range(len(texts))], documents=texts)
    return collection


def require_right(collection, texts, queries, passages):
    kept = collection.get(include=["embeddings"])
    order = [int(id_) for id_ in kept["ids"]]
    np.testing.assert_allclose(kept["embeddings"], passages[order], **SAME)
    found = collection.query(query_texts=texts[:2], n_results=len(texts))
    for row, query in enumerate(queries[:2]):
        distances = 1 - passages @ query
        assert [int(id_) for id_ in found["ids"][row]] == np.argsort(distances).tolist()
        np.testing.assert_allclose(found["distances"][row], np.sort(distances), **SAME)


def test_documents_get_the_passage_prompt_and_queries_the_query_prompt(function, texts, queries, passages):
    for found, expected in ((function(texts), passages), (function.embed_query(texts), queries)):
        np.testing.assert_allclose(found, expected, **SAME)
        assert {row.dtype for row in found} == {np.dtype(np.float32)}


def test_a_collection_in_memory(client, function, texts, queries, passages):
    require_right(filled(client, function, texts), texts, queries, passages)


@pytest.mark.parametrize("named", [True, False])
def test_a_collection_on_disk(tmp_path, function, texts, queries, passages, named):
    collection = filled(chromadb.PersistentClient(tmp_path, SETTINGS), function, texts)
    assert collection.configuration["hnsw"]["space"] == "cosine"
    chromadb.api.client.SharedSystemClient.clear_system_cache()
    options = {"embedding_function": function} if named else {}
    again = chromadb.PersistentClient(tmp_path, SETTINGS).get_collection("pages", **options)
    require_right(again, texts, queries, passages)
    again.add(ids=["more"], documents=[texts[0]])
    np.testing.assert_allclose(
        again.get("more", include=["embeddings"])["embeddings"][0], passages[0], **SAME
    )
    chromadb.api.client.SharedSystemClient.clear_system_cache()


def test_the_configuration(function, artifact_path):
    assert Koe5EmbeddingFunction.name() == "koe5_onnx"
    assert function.get_config() == {"artifact": str(artifact_path), "dim": None, "threads": 1}
    assert (
        Koe5EmbeddingFunction.build_from_config(function.get_config()).get_config() == function.get_config()
    )
    assert not function.is_legacy()


def test_shortened_embeddings(client, allowed, short, texts):
    function = Koe5EmbeddingFunction(allowed, dim=8, threads=1)
    np.testing.assert_array_equal(function(texts), short.encode_passages(texts, dim=8))
    again = Koe5EmbeddingFunction.build_from_config(function.get_config())
    np.testing.assert_array_equal(again.embed_query(texts), short.encode_queries(texts, dim=8))
    queries, passages = (short.encode(texts, prompt, dim=8) for prompt in ("query", "passage"))
    require_right(filled(client, function, texts), texts, queries, passages)
    with pytest.raises(InputError, match="dim is 9: expected one of 8, 16, 64"):
        Koe5EmbeddingFunction(allowed, dim=9, threads=1)(texts)


def test_the_artifact_is_opened_at_the_first_call():
    function = Koe5EmbeddingFunction("no-such-artifact")
    with pytest.raises(ArtifactError, match="no-such-artifact"):
        function(["서울"])


def test_values_that_are_not_text_are_rejected(function):
    with pytest.raises(InputError, match="text 1 is a int"):
        function(["서울", 3])
