"""Devices, threads, forks, a missing ONNX Runtime, and graphs that do not load or do not fit."""

from __future__ import annotations

import dataclasses
import os
import threading

import numpy as np
import pytest

from koe5_onnx import Artifact, ArtifactError, Embedder, EngineOptions, ProviderError
from koe5_onnx.artifact import GRAPHS, MANIFEST, describe_file
from koe5_onnx.cli.doctor import IDENTITY
from koe5_onnx.engine.machine import usable_cores
from koe5_onnx.engine.providers import import_onnxruntime
from koe5_onnx.engine.session import Session

TEXTS = ["하나", "둘 셋 넷", "다섯 " * 40, ""] * 8
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
needs_cpu_wheel = pytest.mark.skipif(
    "CUDAExecutionProvider" in import_onnxruntime().get_available_providers(),
    reason="the GPU wheel is installed",
)

GRAPH = GRAPHS["int8"]


@needs_cpu_wheel
def test_cuda_without_its_wheel_names_the_extra(artifact_path):
    with pytest.raises(ProviderError, match=r"no CUDAExecutionProvider, only .*pip install '\.\[gpu\]'"):
        Embedder.open(artifact_path, device="cuda")


def test_the_cpu_is_what_runs(artifact_path):
    assert Session(Artifact.open(artifact_path), EngineOptions()).providers == ["CPUExecutionProvider"]


def test_threads(artifact_path):
    artifact = Artifact.open(artifact_path)
    assert Session(artifact, EngineOptions()).threads == usable_cores().count
    assert Session(artifact, EngineOptions(threads=3)).threads == 3


@pytest.mark.parametrize(
    ("features", "mode"),
    [
        (("avx2", "sse2"), "1"),
        (("sse2",), "1"),
        (("avx2", "avx_vnni", "sse2"), None),
        (("asimd",), None),
        ((), None),
    ],
)
def test_sums_do_not_saturate_without_dot_products(artifact_path, monkeypatch, features, mode):
    expected = Embedder.open(artifact_path, graph="padded").encode(TEXTS)
    monkeypatch.setattr("koe5_onnx.engine.session.cpu_features", lambda: features)
    session = Session(Artifact.open(artifact_path), EngineOptions(graph="padded"))
    options = session._session_options(import_onnxruntime())
    if mode is None:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.x64quantprecision")
    else:
        assert options.get_session_config_entry("session.x64quantprecision") == mode
    with Embedder.open(artifact_path, graph="padded") as embedder:
        found = embedder.encode(TEXTS)
        np.testing.assert_array_equal(embedder.encode(TEXTS[1:2])[0], found[1])
    assert (found * expected).sum(axis=1).min() > 0.99999


def test_a_closed_session(artifact_path):
    session = Session(Artifact.open(artifact_path), EngineOptions(threads=1, graph="padded"))
    session.close()
    session.close()
    with pytest.raises(ProviderError, match=r"closed\. Open the artifact again"):
        session.run(np.zeros((1, 2), np.int64), np.ones((1, 2), np.int64))


def test_python_threads_share_an_embedder(artifact_path):
    with Embedder.open(artifact_path, threads=2) as embedder:
        expected = embedder.encode(TEXTS)
        results: dict[int, list[np.ndarray]] = {}
        start = threading.Barrier(4)

        def work(number: int) -> None:
            start.wait()
            results[number] = [embedder.encode(TEXTS) for _ in range(5)]

        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert sorted(results) == [0, 1, 2, 3]
    for result in (array for arrays in results.values() for array in arrays):
        np.testing.assert_array_equal(result, expected)


FORK = """
import os, sys
from koe5_onnx import Embedder

texts = ["하나", "둘 셋 넷"] * 20
embedder = Embedder.open(sys.argv[1], threads=int(sys.argv[2]))
expected = embedder.encode(texts).tobytes()
child = os.fork()
if child == 0:
    # If the child hangs, the alarm ends it and the test fails.
    import signal
    signal.alarm(30)
    if sys.argv[3] == "closes it":
        embedder.close()
    elif sys.argv[3] != "leaves it":
        own = embedder if sys.argv[3] == "uses it" else Embedder.open(sys.argv[1], threads=int(sys.argv[2]))
        if own.encode(texts).tobytes() != expected:
            sys.exit("other embeddings in the child")
    # Not os._exit, because the cleanup of the interpreter must not hang either.
    sys.exit(0)
status = os.waitpid(child, 0)[1]
assert embedder.encode(texts).tobytes() == expected
sys.exit(os.waitstatus_to_exitcode(status))
"""


@needs_fork
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("what", ["uses it", "opens its own", "leaves it", "closes it"])
def test_a_forked_child(run_python, artifact_path, threads, what):
    done = run_python(FORK, artifact_path, threads, what)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_nothing_is_reported_to_the_maker_of_onnxruntime(run_python, artifact_path, tmp_path):
    """By default, ONNX Runtime's wheels store a device id in the user's cache and send usage data."""
    code = "import sys; from koe5_onnx import Embedder; Embedder.open(sys.argv[1], threads=1).encode(['가'])"
    done = run_python(code, artifact_path, HOME=str(tmp_path), XDG_CACHE_HOME="")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("sys.modules['onnxruntime'] = None", id="not installed"),
        pytest.param("sys.modules['onnxruntime'] = type(sys)('onnxruntime')", id="half uninstalled"),
    ],
)
def test_no_onnxruntime_names_both_extras(run_python, artifact_path, damage):
    code = f"""
import sys
{damage}
from koe5_onnx import Embedder, MissingDependencyError
try:
    Embedder.open(sys.argv[1])
except MissingDependencyError as error:
    print(error)
"""
    done = run_python(code, artifact_path)
    assert "'.[cpu]'" in done.stdout, done.stderr
    assert "extra gpu" in done.stdout


def test_a_graph_that_does_not_load(artifact_copy):
    artifact = replace_graph(artifact_copy, b"no graph at all")
    with pytest.raises(ProviderError, match=rf"cannot load .*{GRAPH} on CPUExecutionProvider"):
        Session(artifact, EngineOptions(graph="padded"))


def test_a_graph_of_something_else(artifact_copy):
    artifact = replace_graph(artifact_copy, IDENTITY)
    with pytest.raises(
        ArtifactError, match=r"has the inputs \['x'\]: expected \['input_ids', 'attention_mask'\]"
    ):
        Session(artifact, EngineOptions(graph="padded"))


@pytest.mark.parametrize("dim", [1, 31, 33])
def test_a_manifest_of_another_width(artifact_path, dim):
    artifact = Artifact.open(artifact_path)
    contract = dataclasses.replace(artifact.manifest.contract, dim=dim)
    changed = dataclasses.replace(
        artifact, manifest=dataclasses.replace(artifact.manifest, contract=contract)
    )
    with pytest.raises(ArtifactError, match=rf"dimensions .*: expected sentence_embedding with {dim}\."):
        Session(changed, EngineOptions())


def replace_graph(folder, content: bytes) -> Artifact:
    """Replace the artifact's graph and update its hash, so that only the graph itself is invalid."""
    manifest = Artifact.open(folder).manifest
    (folder / GRAPH).write_bytes(content)
    files = {**manifest.files, GRAPH: describe_file(folder / GRAPH)}
    (folder / MANIFEST).write_text(dataclasses.replace(manifest, files=files).to_json(), encoding="utf-8")
    return Artifact.open(folder)
