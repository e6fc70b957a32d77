"""The server benchmark: a complete run on the tiny artifact, the check of answers, and wrong options."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.speed import clients

pytestmark = pytest.mark.slow
ARTIFACT = Path(__file__).resolve().parents[1] / "data" / "tiny-int8"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    file = tmp_path_factory.mktemp("serve") / "serve.json"
    options = ["--artifact", ARTIFACT, "--checkpoint", ARTIFACT, "--json", file, "--wait-ms", "2"]
    options += ["--cache-entries", "50"]
    few = ["--rounds", "2", "--texts", "40", "--laps", "2", "--lone-calls", "5"]
    few += ["--concurrency", "1", "--concurrency", "8"]
    assert main(["serve", *map(str, options), *few, "--corpus", "short", "--corpus", "pages"]) == 0
    return json.loads(file.read_text())


def test_load_of_each_server_at_each_concurrency(result):
    assert set(result["load"]) == {"short", "pages"}
    for one in result["load"].values():
        assert (one["texts"], one["laps"]) == (40, 2)
        assert one["offline_tokens_per_s"] > 0
        assert set(one["servers"]) == {"ours", "ours, wait 2 ms"}
        for by_concurrency in one["servers"].values():
            assert set(by_concurrency) == {"1", "8"}
            for row in by_concurrency.values():
                assert row["errors"] == 0
                assert row["requests_per_s"] > 0
                assert row["client_cpu_ms"] > 0
                assert row["server_cpu_ms"] > 0
                assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]


def test_a_lone_query_and_queries_during_bulk(result):
    assert set(result["lone_ms"]) == {"offline", "ours", "ours, wait 2 ms"}
    fairness = result["fairness"]
    expected = fairness["beside_bulk_ms"]["p99_ms"] / fairness["alone_ms"]["p99_ms"]
    assert fairness["p99_ratio"] == pytest.approx(expected)
    assert fairness["bulk_texts_per_s"] > 0


def test_a_log_of_repeated_queries(result):
    without, cached = result["query_log"]["0"], result["query_log"]["50"]
    assert len(without["requests_per_s"]) == len(cached["requests_per_s"]) == 2
    assert without["hit_rate"] == 0 < cached["hit_rate"] < 1


def answer_of(*rows):
    items = [{"embedding": base64.b64encode(np.asarray(row, "<f4")).decode()} for row in rows]
    return json.dumps({"data": items}).encode()


@pytest.mark.parametrize(
    ("status", "body", "is_right"),
    [
        (200, answer_of([1, 2]), True),
        (500, answer_of([1, 2]), False),
        (200, answer_of([1, 2, 3]), False),
        (200, answer_of([1, np.nan]), False),
        (200, answer_of([1, 2], [1, 2]), False),
        (200, answer_of(), False),
    ],
)
def test_only_complete_finite_embeddings_are_right_answers(status, body, is_right):
    assert clients._is_right((status, body), SimpleNamespace(dim=2), 1) == is_right


def test_a_peer_without_its_environment(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.contenders.registry.ROOT", tmp_path)
    options = ["--artifact", str(ARTIFACT), "--checkpoint", str(ARTIFACT), "--texts", "40"]
    assert main(["serve", *options, "--peer", "infinity"]) == 1
    assert "make contenders" in capsys.readouterr().err


def test_wrong_options(capsys):
    options = ["--artifact", str(ARTIFACT), "--checkpoint", str(ARTIFACT)]
    assert main(["serve", *options, "--rounds", "0"]) == 1
    assert "must be at least 1" in capsys.readouterr().err
