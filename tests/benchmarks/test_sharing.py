"""The measurement of shared weights, on the tiny artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import sharing
from benchmarks.__main__ import main, parse
from koe5_onnx.engine.graphs import installed_kernels

ARTIFACT = Path(__file__).resolve().parents[1] / "data" / "tiny-int8"


@pytest.mark.skipif(isinstance(installed_kernels(), str), reason=str(installed_kernels()))
def test_memory_and_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KOE5_ONNX_CACHE", str(tmp_path / "cache"))
    arguments = ["--processes", "2", "--threads", "1", "--starts", "1", "--cold"]
    out = tmp_path / "out.json"
    assert main(["sharing", "--artifact", str(ARTIFACT), *arguments, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [(one["processes"], one["way"]) for one in found["memory"]] == [(2, "own"), (2, "shared")]
    for one in found["memory"]:
        assert 1e7 < one["uss_bytes"] < one["pss_bytes"] < one["rss_bytes"]
    assert list(found["starts"]) == ["own", "first", "again", "own, cold", "again, cold"]
    assert all(seconds > 0 for start in found["starts"].values() for seconds in start.values())
    assert found["kept_bytes"] > 0
    assert list((tmp_path / "cache").iterdir()) == []
    assert sharing.table(found) in capsys.readouterr().out


def test_without_fused_kernels_there_is_nothing_to_measure(monkeypatch, capsys):
    monkeypatch.setattr("koe5_onnx.engine.graphs.installed_kernels", lambda: "no kernels today")
    assert main(["sharing", "--artifact", str(ARTIFACT)]) == 1
    assert "no kernels today" in capsys.readouterr().err


def test_arguments():
    args = parse(["sharing", "--artifact", "a", "--processes", "1", "8"])
    assert (args.artifact, args.processes, args.cold) == (Path("a"), [1, 8], False)
