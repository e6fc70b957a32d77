"""docs/scale.md: its commands are ones that the command knows, its Python runs, its figures agree."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from koe5_onnx.cli import parse

pa = pytest.importorskip("pyarrow")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^koe5-onnx (.+)$", PAGE, re.M)
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_known(command):
    args = parse(shlex.split(command))
    assert args.text_column == "contents"


def test_there_are_commands_for_both_engines():
    assert {parse(shlex.split(command)).engine for command in COMMANDS} == {"local", "ray"}
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS)
def test_the_python_runs(block, tmp_path, monkeypatch, capsys):
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "tests/data/tiny-int8", "koe5-int8")
    pq.write_table(pa.table({"contents": ["가", "나", None]}), "corpus.parquet")
    names = {}
    exec(compile(block, "docs/scale.md", "exec"), names)
    if "summary" in names:
        assert capsys.readouterr().out.startswith("2 1 ")
    else:
        assert names["best"].shape == (1, 100)


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert link.startswith("https://") or (ROOT / "docs" / link).is_file(), link


def test_the_arithmetic():
    """Core-hours of the table by the rates in its own rows."""
    rows = re.findall(r"int8 \| ([\d,]+) \(.*?\) \| ([\d,]+) core-hours \| ([\d,]+) core-hours", PAGE)
    assert len(rows) == 2
    for row in rows:
        rate_per_core, short, pages = (int(figure.replace(",", "")) for figure in row)
        assert 1e9 * 100 / rate_per_core / 3600 == pytest.approx(short, rel=0.02)
        assert 1e9 * 407 / rate_per_core / 3600 == pytest.approx(pages, rel=0.02)
