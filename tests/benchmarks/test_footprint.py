"""The footprint's measurement on this very environment, and its table; nothing is installed here."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from benchmarks import footprint
from benchmarks.__main__ import parse

PYTHON = Path(sys.executable)


def test_what_is_installed_is_counted():
    found = footprint._installed(PYTHON)
    names = {one.name for one in importlib.metadata.distributions()} - {"pip", "setuptools"}
    assert found["packages"] == len(names)
    assert found["bytes"] > sum(found["largest_bytes"].values()) > found["bytes"] / 10
    (largest, size), *_ = found["largest_bytes"].items()
    files = importlib.metadata.files(largest)
    assert size == sum(file.locate().stat().st_size for file in files if file.suffix != ".pyc")


def test_imports_are_measured_in_processes_of_their_own(monkeypatch):
    small = footprint.Installation((), Path("none"), "json")
    large = footprint.Installation((), Path("none"), "numpy")
    monkeypatch.setattr(footprint, "INSTALLATIONS", {"small": small, "large": large})
    found = footprint._imports({"small": PYTHON, "large": PYTHON}, times=3)
    assert 0 < found["small"]["import_seconds_least"] <= found["small"]["import_seconds"]
    assert 1e6 < found["small"]["rss_bytes"] < found["large"]["rss_bytes"]


def test_every_installation_is_pinned():
    for name, installation in footprint.INSTALLATIONS.items():
        pins = installation.constraints.read_text(encoding="utf-8")
        for requirement in installation.requirements:
            if not requirement.startswith("."):
                assert f"{requirement.partition('==')[0]}==" in pins, name


def test_a_failed_installation_is_an_error(tmp_path, capfd):
    nowhere = footprint.Installation(("./no-such-folder",), footprint.CHECKOUT / "constraints.txt", "x")
    with pytest.raises(OSError, match=r"could not install \./no-such-folder"):
        footprint._install(nowhere, tmp_path / "environment")
    assert "no-such-folder" in capfd.readouterr().err


def test_table():
    one = {"packages": 12, "bytes": 98_765_432, "import_seconds": 0.0512, "rss_bytes": 41_000_000}
    result = {"installations": {"koe5-onnx[cpu]": one | {"largest_bytes": {"onnxruntime": 50_000_000}}}}
    row = footprint.table(result).splitlines()[1]
    assert row.split() == ["koe5-onnx[cpu]", "12", "99", "0.05", "41", "onnxruntime", "50"]


def test_arguments():
    args = parse(["footprint", "--imports", "3", "--json", "out.json"])
    assert (args.imports, args.json, args.run) == (3, Path("out.json"), footprint.run)
