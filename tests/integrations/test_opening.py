"""One Embedder for all adapters of one artifact; importing the package loads nothing."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import weakref

import pytest

from koe5_onnx import ArtifactError, Embedder, InputError, MissingDependencyError
from koe5_onnx.integrations.shared_embedders import OpenOptions, opened

LIBRARIES = {
    "chroma": "chromadb",
    "haystack": "haystack",
    "langchain": "langchain_core",
    "llama_index": "llama_index",
    "mteb": "mteb",
}
"""Module to what it adapts."""


def test_the_options_are_those_of_open():
    keywords = inspect.signature(Embedder.open).parameters.values()
    expected = {one.name for one in keywords if one.kind is inspect.Parameter.KEYWORD_ONLY}
    assert set(OpenOptions.__annotations__) == expected


def test_the_same_is_opened_once(artifact_path, monkeypatch):
    first = opened(artifact_path, {"threads": 1})
    monkeypatch.chdir(artifact_path.parent)
    assert opened(artifact_path.name, {"threads": 1}) is first
    assert opened(str(artifact_path), {"threads": 2}) is not first


def test_what_nobody_holds_is_freed(artifact_path):
    held = opened(artifact_path, {"threads": 1, "max_batch_tokens": 77})
    watched = weakref.ref(held)
    del held
    gc.collect()
    assert watched() is None


def test_an_open_one_is_taken_as_it_is(embedder):
    assert opened(embedder, {}) is embedder
    with pytest.raises(TypeError, match="open already: expected no options, got threads"):
        opened(embedder, {"threads": 1})


def test_wrong_options_are_refused(artifact_path):
    with pytest.raises(InputError, match="threads is 0"):
        opened(artifact_path, {"threads": 0})
    with pytest.raises(TypeError, match="trust_remote_code"):
        opened(artifact_path, {"trust_remote_code": True})
    with pytest.raises(ArtifactError, match="no-such-artifact"):
        opened("no-such-artifact", {})


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
    with pytest.raises(MissingDependencyError, match=rf"pip install 'koe5-onnx\[{extra}\]'"):
        __import__(f"koe5_onnx.integrations.{module}")
