"""The tables and the chart of docs/performance.md, compared with the committed results."""

import re
from xml.etree import ElementTree as ET

import pytest

from benchmarks.__main__ import main
from benchmarks.speed.bars import Bar, Panel, chart
from benchmarks.speed.performance import CHART, PAGE, speed_chart, updated
from benchmarks.speed.tables import speeds, tables
from koe5_onnx import InputError

BEGIN, END = "<!-- table speed: begin -->", "<!-- table speed: end -->"


def texts_of(svg: bytes) -> list[str]:
    """Return the texts of a chart, which do not depend on the matplotlib version."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg.decode("utf-8"))


def test_the_committed_tables_match_the_results():
    text = PAGE.read_text(encoding="utf-8")
    assert updated(text, tables(), PAGE.name) == text, "run python -m benchmarks performance"


def test_the_committed_chart_matches_the_results():
    pytest.importorskip("matplotlib")
    drawn = speed_chart(speeds())
    assert texts_of(CHART.read_bytes()) == texts_of(drawn), "run python -m benchmarks performance"
    assert "5,882" in texts_of(drawn)


def test_a_chart_is_svg_with_its_texts():
    pytest.importorskip("matplotlib")
    svg = chart("title", [Panel("one", [Bar("a & b", 1, 0, 3)]), Panel("two", [Bar("c", 2, 1, 2)])])
    texts = {text.strip() for text in ET.fromstring(svg).itertext()}
    assert {"title", "one", "two", "a & b", "c", "1", "2"} <= texts


def test_a_table_replaces_what_is_between_its_marks():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    for _ in range(2):  # a second update must not change anything
        text = updated(text, {"speed": "| new |"}, "page.md")
        assert text == f"before\n{BEGIN}\n\n| new |\n\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_page_without_marks_is_rejected(text):
    with pytest.raises(InputError, match=r"page\.md must have the lines .* once each"):
        updated(text, {"speed": "| new |"}, "page.md")


def test_the_command_leaves_a_page_without_marks_unchanged(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    page, svg = tmp_path / "page.md", tmp_path / "speed.svg"
    page.write_text("no marks\n", encoding="utf-8")
    assert main(["performance", "--page", str(page), "--chart", str(svg)]) == 1
    assert "once each" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == "no marks\n"
    assert not svg.exists()


def test_the_command_writes_the_page_and_the_chart(tmp_path):
    pytest.importorskip("matplotlib")
    page, svg = tmp_path / "page.md", tmp_path / "images/speed.svg"
    page.write_text(PAGE.read_text(encoding="utf-8").replace("1,128 (", "0 ("), encoding="utf-8")
    assert main(["performance", "--page", str(page), "--chart", str(svg)]) == 0
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
    assert texts_of(svg.read_bytes()) == texts_of(CHART.read_bytes())
