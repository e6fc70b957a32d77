"""The page and the README's table of made-up results, and the smoke check's comparison."""

import base64
import json
import re
from xml.etree import ElementTree as ET

import pytest

from benchmarks.__main__ import main
from benchmarks.speed.bars import Bar, Mark, draw
from benchmarks.speed.report import BEGIN, END, page, readme_table, readme_tables
from benchmarks.speed.smoke import RECORD, compare, read_record
from koe5_onnx import InputError

MACHINE = {"cpu": "A <CPU>", "cores": 2, "instructions": ["avx512_vnni"], "memory_gib": 24}
HEAD = {
    "format": 1,
    "at": "2026-01-01",
    "commit": None,
    "machine": MACHINE,
    "threads": 2,
    "checkpoint": "large",
}
ABOUT = {"versions": {"lib": "1"}, "about": "a & b", "cosine_min": 0.9995, "batch": {"short": 512}}
NAMES = ("koe5-int8", "openvino-int8")
MIB = 2**20


def spread(value):
    return {"min": value * 0.9, "median": value, "max": value * 1.1, "rounds": [value]}


def result(benchmark, **more):
    contenders = dict.fromkeys(NAMES, ABOUT)
    return {**HEAD, "benchmark": benchmark, "contenders": contenders, "wrong": {}, **more}


def rate(value, ratio):
    return {**spread(value), "ratio": ratio, "texts_per_second": value / 30, "share_of_ceiling": value / 1268}


@pytest.fixture
def results():
    figures = {"koe5-int8": rate(1000.4, 1.25), "openvino-int8": rate(800.0, 1.0)}
    corpora = {"short": {"texts": 4, "tokens": 120, "tokens_per_second": figures}}
    latency = {"p50": 44.04, "p90": 50, "p99": 60, "p99_to_p50": 1.4, "calls": [1.0], "idle_cpu": 0.001}
    memory = dict.fromkeys(("opened_rss_bytes", "peak_rss_bytes", "anonymous_bytes", "file_bytes"), 700 * MIB)
    start = {step: spread(0.4) for step in ("import", "open", "first", "total")}
    return [
        result("throughput", baseline="openvino-int8", ceiling={"stock": spread(1268.0)}, corpora=corpora),
        result("latency", query_tokens=40, latency_ms={"koe5-int8": latency}),
        result("memory", memory={"koe5-int8": {**memory, "growth": 0.02, "shapes": 2000}}),
        result("coldstart", coldstart_seconds={"koe5-int8": start}),
    ]


def test_each_machine_has_a_table_of_its_own(results):
    other = {**results[0], "machine": {**MACHINE, "cpu": "B"}}
    assert readme_tables(results) == readme_table(results)
    assert readme_tables([*results, other]) == f"{readme_table(results)}\n\n{readme_table([other])}"
    assert readme_tables([]) == ""


def test_the_table(results):
    lines = readme_table(results).splitlines()
    assert lines[0].startswith("|  | short, tokens/s (to openvino-int8) | pages")
    assert lines[2] == "| **koe5-int8** | 1,000 (1.25x) | – | – | 44.0 | 700 | 0.40 |"
    assert lines[3] == "| openvino-int8 | 800 (1.00x) | – | – | – | – | – |"
    assert {line.count("|") for line in lines[:4]} == {8}
    assert lines[-1].endswith("The int8 GEMM ceiling of ONNX Runtime there: 1,268 tokens/s.")


def test_of_two_results_the_first_counts(results):
    other = json.loads(json.dumps(results[0]).replace("1000.4", "1.0"))
    assert "1,000 (1.25x)" in readme_table([results[0], other])
    assert "1,000 (1.25x)" not in readme_table([other, results[0]])


def test_the_page_escapes_and_stands_alone(results):
    results[0]["wrong"] = {"fastembed": "<script>alert(1)</script>"}
    text = page(results)
    assert "A &lt;CPU&gt;" in text
    assert "a &amp; b" in text
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert not re.search(r"""src="(?!data:)|href=|@import|url\(""", text)
    assert text.count("<img") == 4


def test_the_drawings_name_every_bar():
    bars = [Bar("one", [1.0, 2.0], "3"), Bar("a & b", [0.0], "0", 0.0, 7.0)]
    source = re.search('src="data:image/svg[+]xml;base64,(.*)"', draw("<title>", bars, Mark(8.0, "limit")))
    texts = ET.fromstring(base64.b64decode(source[1])).itertext()
    assert {"one", "3", "a & b", "0", "limit"} <= {text.strip() for text in texts}


@pytest.fixture
def files(results, tmp_path):
    found = []
    for one in results:
        file = tmp_path / f"{one['benchmark']}.json"
        file.write_text(json.dumps(one), encoding="utf-8")
        found.append(str(file))
    return found


def test_the_command_renews_the_readme(files, results, tmp_path):
    readme, out = tmp_path / "README.md", tmp_path / "report.html"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    for _ in range(2):  # a second time changes nothing more
        assert main(["report", *files, "--out", str(out), "--readme", str(readme)]) == 0
        assert readme.read_text(encoding="utf-8") == (
            f"before\n{BEGIN}\n\n{readme_table(results)}\n\n{END}\nafter\n"
        )
    assert out.read_text(encoding="utf-8") == page(results)


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_its_marks_stays_as_it_is(files, tmp_path, capsys, text):
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    assert main(["report", *files, "--readme", str(readme)]) == 1
    assert "once each" in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == text


def test_files_that_are_no_results(tmp_path, capsys):
    file = tmp_path / "x.json"
    assert main(["report", str(file)]) == 1
    file.write_text('{"format": 1, "benchmark": "quality"}', encoding="utf-8")
    assert main(["report", str(file)]) == 1
    assert "expected one of throughput, latency, memory, coldstart" in capsys.readouterr().err


NODES = {"int8 padded": {"tiny": 112, "small": 276, "per layer": 41.0}}
BOUNDS = {"nodes": NODES, "least_ratios": {"padded to ort-fp32": 1.2}}


def test_what_is_as_recorded_has_no_fault():
    assert list(compare(BOUNDS, NODES, {"padded to ort-fp32": 1.2})) == []
    assert list(compare(BOUNDS, NODES, {})) == []


@pytest.mark.parametrize(
    ("nodes", "ratios", "fault"),
    [
        ({"int8 padded": {**NODES["int8 padded"], "small": 277}}, {}, "nodes of int8 padded"),
        ({}, {}, "nodes of int8 padded: None"),
        ({**NODES, "fp32 padded": {"tiny": 1}}, {}, "nodes of fp32 padded"),
        (NODES, {"padded to ort-fp32": 1.19}, "1.19x, expected 1.20x or more"),
        (NODES, {"padded to ort-fp32": float("nan")}, "expected 1.20x"),
        (NODES, {"fused to ort-fp32": 9.0}, "no bound is recorded"),
    ],
)
def test_what_differs_is_a_fault(nodes, ratios, fault):
    (found,) = compare(BOUNDS, nodes, ratios)
    assert fault in found


def test_the_committed_record_is_whole():
    record = read_record(RECORD)
    assert set(record["nodes"]) == {"fp32 padded", "int8 padded", "int8 packed"}
    assert all(bound > 0 for bound in record["least_ratios"].values())
    assert len(record["least_ratios"]) == 4


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_damaged_record_says_what_to_do(tmp_path, text):
    file = tmp_path / "smoke.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="smoke --record"):
        read_record(file)
