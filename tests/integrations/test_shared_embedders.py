"""Adapters with the same artifact and options share an Embedder. They accept all options."""

from __future__ import annotations

import gc
import importlib
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest
from other_options import OTHER

from koe5_onnx import ArtifactError, Embedder, EngineOptions, InputError, MissingDependencyError
from koe5_onnx.integrations.sentence_transformers import SentenceEncoder
from koe5_onnx.integrations.shared_embedders import opened

LIBRARIES = {
    "chroma": "chromadb",
    "haystack": "haystack",
    "langchain": "langchain_core",
    "llama_index": "llama_index",
    "mteb": "mteb",
}
"""Adapted library by module."""


ADAPTERS = {
    "chroma": ("Koe5EmbeddingFunction", lambda one: one(["가"])),
    "haystack": ("Koe5TextEmbedder", lambda one: one.warm_up()),
    "langchain": ("Koe5Embeddings", None),
    "llama_index": ("Koe5Embedding", None),
    "mteb": ("Koe5Encoder", None),
    "sentence_transformers": ("SentenceEncoder", None),
}
"""Class by module, and a function that makes the instance open the artifact; None if the constructor does."""


@pytest.mark.parametrize("module", ADAPTERS)
def test_adapters_pass_on_every_option(module, monkeypatch):
    given = []

    def stop(_artifact, options):
        given.append(options)
        raise InputError("that was all")

    monkeypatch.setattr(Embedder, "open", stop)
    if module in LIBRARIES:
        pytest.importorskip(LIBRARIES[module])
    name, use = ADAPTERS[module]
    adapter = getattr(importlib.import_module(f"koe5_onnx.integrations.{module}"), name)
    with pytest.raises(InputError, match="that was all"):
        (use or (lambda one: one))(adapter("an-artifact", **OTHER))
    assert given == [EngineOptions(**OTHER)]
    assert given[0].changed() == OTHER


EMBED = {
    "chroma": lambda one, text: one([text])[0],
    "haystack": lambda one, text: one.run(text)["embedding"],
    "langchain": lambda one, text: one.embed_query(text),
    "llama_index": lambda one, text: one.get_query_embedding(text),
    "mteb": lambda one, text: one.embedder.encode([text])[0],
    "sentence_transformers": lambda one, text: one.encode(text),
}
"""Function that embeds a text, by module."""


@pytest.mark.parametrize("module", ADAPTERS)
def test_adapters_are_pickled_before_and_after_their_use(module, artifact_path):
    """joblib and the `map` of datasets pickle them for other processes."""
    if module in LIBRARIES:
        pytest.importorskip(LIBRARIES[module])
    name, _ = ADAPTERS[module]
    adapter = getattr(importlib.import_module(f"koe5_onnx.integrations.{module}"), name)
    one = adapter(str(artifact_path), threads=1)
    copies = [pickle.loads(pickle.dumps(one))]
    expected = EMBED[module](one, "서울")
    copies.append(pickle.loads(pickle.dumps(one)))
    for copied in copies:
        np.testing.assert_array_equal(EMBED[module](copied, "서울"), expected)


def test_equal_artifacts_and_options_are_opened_once(artifact_path, monkeypatch):
    first = opened(artifact_path, EngineOptions(threads=1))
    monkeypatch.chdir(artifact_path.parent)
    assert opened(artifact_path.name, EngineOptions(threads=1)) is first
    assert opened(str(artifact_path), EngineOptions(threads=2)) is not first


def test_an_unreferenced_embedder_is_freed(artifact_path):
    held = opened(artifact_path, EngineOptions(threads=1, max_batch_tokens=77))
    watched = weakref.ref(held)
    del held
    gc.collect()
    assert watched() is None


def test_an_open_embedder_is_used_unchanged(embedder):
    assert opened(embedder, EngineOptions()) is embedder
    with pytest.raises(TypeError, match="already open: expected no options, got threads"):
        opened(embedder, EngineOptions(threads=1))


def test_wrong_options_are_rejected(artifact_path):
    with pytest.raises(InputError, match="threads is 0"):
        SentenceEncoder(artifact_path, threads=0)
    with pytest.raises(TypeError, match="trust_remote_code"):
        SentenceEncoder(artifact_path, trust_remote_code=True)
    with pytest.raises(ArtifactError, match="no-such-artifact"):
        SentenceEncoder("no-such-artifact")


def test_importing_the_package_loads_no_library():
    code = f"import koe5_onnx.integrations, sys; print(*set(sys.modules) & {set(LIBRARIES.values())})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("module", LIBRARIES)
def test_a_missing_library_is_named(module, monkeypatch):
    monkeypatch.setitem(sys.modules, LIBRARIES[module], None)
    monkeypatch.delitem(sys.modules, f"koe5_onnx.integrations.{module}", raising=False)
    for name in [one for one in sys.modules if one.partition(".")[0] == LIBRARIES[module]]:
        monkeypatch.setitem(sys.modules, name, None)
    extra = module.replace("_", "-")
    with pytest.raises(MissingDependencyError, match=rf"pip install '\.\[{extra}\]'"):
        __import__(f"koe5_onnx.integrations.{module}")
