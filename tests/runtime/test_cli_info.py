"""koe5-onnx info shows the manifest as text and as a page, and treats its strings as untrusted."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from edited_json import edited

from koe5_onnx import Artifact, Manifest, cli
from koe5_onnx.artifact import ERROR_BINS, GRAPHS, MANIFEST, describe_file, weights_of
from koe5_onnx.cli.report import printable

WEIGHTS = weights_of(GRAPHS["int8"])

VOID = {"meta"}
"""HTML elements on the page without an end tag."""


@pytest.fixture
def info(capsys, tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs `koe5-onnx info` and returns its standard output."""

    def run(*arguments: object, code: int = 0) -> str:
        assert cli.main(["info", *map(str, arguments)]) == code
        return capsys.readouterr().out

    return run


@pytest.fixture
def changed(artifact_copy: Path) -> Callable[[Callable[[dict], object]], Path]:
    """Return a function that edits the manifest of a copy of the tiny artifact and returns the copy."""

    def change(edit: Callable[[dict], object]) -> Path:
        with edited(artifact_copy / MANIFEST) as manifest:
            edit(manifest)
        return artifact_copy

    return change


@pytest.fixture
def page_of(info, tmp_path: Path) -> Callable[[Path], Page]:
    def make(artifact: Path) -> Page:
        info(artifact, "--html", tmp_path / "page.html")
        return Page((tmp_path / "page.html").read_text(encoding="utf-8"))

    return make


class Page(HTMLParser):
    """Parses a page and checks that its tags are balanced; collects elements and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.text = source, ""
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = attributes.items()
        return [found for name, found in self.elements if name == tag and wanted <= found.items()]

    def panels(self) -> list[str]:
        """Return the source of each histogram."""
        return re.findall(r'<div class="histogram".*?\n</div>', self.source, re.DOTALL)


def bars_of(panel: str) -> list[int]:
    """Return the counts above the bars."""
    return [int(count) for count in re.findall(r'class="bar"[^>]*><span>(\d+)<', panel)]


FIGURES = {
    "texts": 41,
    "cosine_min": 0.99996261,
    "cosine_p1": 0.9999667,
    "cosine_mean": 0.99999329,
    "max_abs_diff": 0.003474461,
    "error_counts": {"3e-06": 4, "1e-05": 32, "3e-05": 4, "0.0001": 1},
}
"""Certificate figures that replace the artifact's own, which change whenever it is rebuilt."""


def test_the_text_has_every_figure(info, changed):
    def edit(manifest):
        certificate = manifest["certificate"]
        certificate["overall"] = FIGURES
        certificate["by_length"] = {"33-64": FIGURES, "65-128": {**FIGURES, "cosine_mean": 1.0}}
        certificate["retrieval"].update(overlap=0.98780488, rank_correlation=0.998961, similarity_error=0.004)
        certificate["retrieval"].update(similarity_p5=0.71, similarity_p50=0.7825, similarity_p95=0.9)
        certificate["retrieval"]["texts"] = 41
        certificate["batch_texts"] = 24
        manifest["packed_certificate"]["overall"] = {**FIGURES, "cosine_min": 0.95}
        certificate["measured_with"].update(cpu="Intel(R) Xeon(R) Processor", onnxruntime="1.32.0")
        manifest["architecture"].update(vocabulary=900, parameters=62_432)
        manifest["source"]["weights_sha256"] = "e336a36eb0ce" + "0" * 52
        manifest["recipe"] = {"smoothing_strength": 0.6, "calibration_sha256": "0d2582d2ecf1" + "0" * 52}

    path = changed(edit)
    size = (path / WEIGHTS).stat().st_size
    lines = [" ".join(line.split()) for line in info(path).splitlines()]
    for expected in (
        "tiny-seeded, int8",
        "checkpoint tiny-seeded at an unknown revision",
        "weights SHA-256 e336a36eb0ce...",
        "architecture xlm-roberta, 2 layers, width 64, 4 heads, FFN 128, vocabulary 900",
        "parameters 62,432",
        "smoothing strength 0.6",
        "calibration sha256 0d2582d2ecf1...",
        "devices cpu",
        "instructions one of amx_int8, avx512_vnni, avx_vnni, asimddp, i8mm, avx2",
        "without them int8 is slow. Export with int8-block instead",
        "pooling mean pooling",
        "length unit length",
        "embedding 64 dimensions",
        "input at most 512 tokens",
        'prompts "query: " for query, "passage: " for passage',
        f"{WEIGHTS} {size / 1e3:.1f} kB {size:,} {describe_file(path / WEIGHTS).sha256[:12]}...",
        "all lengths 41 0.999963 0.999967 0.999993 3.7e-05 3.5e-03",
        "65-128 tokens 41 0.999963 0.999967 1.000000 3.7e-05 3.5e-03",
        "length 1e-06 to 3e-06 3e-06 to 1e-05 1e-05 to 3e-05 3e-05 to 0.0001",
        "all lengths 4 32 4 1",
        "alone or in a batch cosine at least 1.000000 over 24 texts",
        "nearest neighbors kept 98.78% of the 10 nearest, with each of 41 texts as a query for the others",
        "rank correlation 0.998961 (Spearman, of each text's similarities)",
        "largest similarity change 0.004 between two texts",
        "spread of similarities 0.710 to 0.900 for 90% of the pairs of texts, median 0.782 (PyTorch)",
        "smallest cosine (cosine_min) at least 0.99 0.9999626 passed",
        "mean cosine (cosine_mean) at least 0.998 0.9999933 passed",
        "smallest cosine, alone vs. in a batch (batch_cosine_min) at least 0.99999 1 passed",
        "CPU Intel(R) Xeon(R) Processor",
        "cosine to PyTorch min 0.950000, 1st percentile 0.999967, mean 0.999993 over 41 texts",
        "gate FAILED",
        "provider CPUExecutionProvider",
        "ONNX Runtime 1.32.0",
    ):
        assert expected in lines
    assert not any("NOTE" in line for line in lines)


def test_json_is_the_manifest(info, artifact_path):
    written = Manifest.from_json((artifact_path / MANIFEST).read_text(encoding="utf-8"))
    assert Manifest.from_json(info(artifact_path, "--json")) == written


def test_the_page_says_what_the_text_says(info, page_of, artifact_path):
    page = page_of(artifact_path)
    for line in info(artifact_path).splitlines():
        for cell in re.split(r"\s{2,}", line.strip()):
            assert cell in page.text


def test_the_page_stands_alone(page_of, artifact_path):
    page = page_of(artifact_path)
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "base", "image", "use"}
    assert not re.search(r"https?:|src=|href=|url\(|@import", page.source)
    assert page.all("html", lang="en")
    assert page.all("meta", content="default-src 'none'; style-src 'unsafe-inline'")


def test_the_page_is_accessible(page_of, artifact_path):
    page = page_of(artifact_path)
    headings = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h\d", name)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert len(page.all("caption")) == len(page.all("table")) == 4
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    drawings = page.all("div", role="img")
    assert len({drawing["aria-label"] for drawing in drawings}) == len(page.panels()) == 7


def test_each_histogram_has_all_its_texts(page_of, artifact_path):
    certificate = Artifact.open(artifact_path, check=False).manifest.certificate
    agreements = [certificate.overall, *certificate.by_length.values()]
    panels = page_of(artifact_path).panels()
    for panel, agreement in zip(panels, agreements, strict=True):
        assert bars_of(panel) == list(agreement.error_counts.values())
        assert sum(bars_of(panel)) == agreement.texts
        assert panel.count('class="bar"') == len(agreement.error_counts)
        assert f"over {agreement.texts} text" in panel


def test_the_gate_is_one_line_through_all(page_of, artifact_path, changed):
    gates = re.findall(r'class="gate \w+" style="left: ([\d.]+)%"', page_of(artifact_path).source)
    assert len(gates) == 7
    assert len(set(gates)) == 1
    without = page_of(changed(lambda manifest: manifest["certificate"]["gate"].pop("cosine_min")))
    assert 'class="gate' not in without.source
    assert "dashed" not in without.text


@pytest.mark.parametrize("bound", [0.98, 0.0, 1.0, 2.0, -1.0, -1.5, -9.0, 1 - 1e-16, 1 - 1e-9, float("nan")])
@pytest.mark.parametrize("turn", [0, 5, len(ERROR_BINS) - 1])
def test_everything_is_drawn_within_the_frame(page_of, changed, bound, turn):
    def edit(manifest):
        manifest["certificate"]["gate"]["cosine_min"] = bound
        for found in (manifest["certificate"]["overall"], *manifest["certificate"]["by_length"].values()):
            found["error_counts"] = {f"{ERROR_BINS[turn]:g}": found["texts"]}

    page = page_of(changed(edit))
    shares = re.findall(r'style="\w+: (.+?)%"', page.source)
    assert len(shares) >= len(page.panels())
    assert all(0 <= float(share) <= 100 for share in shares)


HOSTILE = "<script>alert('\"&')</script>\x1b[2J\u202e\ud800"


def test_a_hostile_manifest_is_shown_and_not_obeyed(info, page_of, changed):
    def edit(manifest):
        manifest["source"] |= {"repository": HOSTILE, "revision": HOSTILE}
        manifest["architecture"]["model_type"] = HOSTILE
        manifest["recipe"] = {HOSTILE: {HOSTILE: [HOSTILE]}, "sha256": HOSTILE}
        manifest["target"] = {"devices": [HOSTILE], "instructions": [HOSTILE], "without": HOSTILE}
        manifest["contract"] |= {"pooling": HOSTILE, "prompts": {HOSTILE: HOSTILE}}
        certificate = manifest["certificate"]
        certificate["by_length"] = {HOSTILE: certificate["overall"]}
        certificate["gate"][HOSTILE] = 1.0
        certificate["measured_with"][HOSTILE] = HOSTILE

    artifact = changed(edit)
    page, text = page_of(artifact), info(artifact)
    assert not page.all("script")
    assert page.source.count("<!") == 1
    for output in (page.source, text):
        assert all(character.isprintable() or character == "\n" for character in output)
    shown = HOSTILE.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e").replace("\ud800", r"\ud800")
    for output in (page.text, text):
        assert f"{shown}, int8" in output
        assert f"{shown} at {shown}" in output
    assert json.loads(info(artifact, "--json"))["source"]["revision"] == HOSTILE


@pytest.mark.parametrize(
    ("text", "shown"),
    [("서울 é ☃", "서울 é ☃"), ("\n\t\x00\x9b", r"\n\t\x00\x9b"), ("\u2066\udfff", r"\u2066\udfff")],
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_no_certificate(info, page_of, changed):
    artifact = changed(lambda manifest: manifest.update(certificate=None))
    note = "No certificate: the artifact was never compared with PyTorch. Export it again."
    assert f"Certificate\n  NOTE: {note}\n" in info(artifact)
    page = page_of(artifact)
    assert note in page.text
    assert not page.panels()


@pytest.mark.parametrize(
    ("devices", "provider", "noted"),
    [
        (["cuda"], "CPUExecutionProvider", True),
        (["cuda"], "CUDAExecutionProvider", False),
        (["cpu", "cuda"], "CPUExecutionProvider", False),
    ],
)
def test_measured_on_another_device_than_it_is_for(info, page_of, changed, devices, provider, noted):
    def edit(manifest):
        manifest["target"] = {"devices": devices, "instructions": [], "without": ""}
        manifest["certificate"]["measured_with"]["provider"] = provider

    artifact = changed(edit)
    note = "Measured on a CPU (CPUExecutionProvider), but the artifact is made for cuda"
    assert (f"NOTE: {note}" in info(artifact)) == noted
    assert (note in page_of(artifact).text) == noted


@pytest.mark.parametrize(
    ("gate", "row", "verdict"),
    [
        ({"cosine_min": 0.99999}, "smallest cosine (cosine_min) at least 0.99999 0.9999626 FAILED", "FAILED"),
        ({"max_abs_diff": 0.001}, "(max_abs_diff) at most 0.001 0.003474461 FAILED", "FAILED"),
        ({"max_abs_diff": 0.01}, "(max_abs_diff) at most 0.01 0.003474461 passed", "passed"),
        ({"cosine_min": 0.9, "later": 0.5}, "later 0.5 unknown bound", "unknown bound"),
        ({"cosine_mean": float("nan")}, "mean cosine (cosine_mean) at least nan 0.9999933 FAILED", "FAILED"),
        ({}, "bound required measured result", "none"),
    ],
)
def test_the_gate_is_held_against_the_figures(info, changed, gate, row, verdict):
    path = changed(lambda manifest: manifest["certificate"].update(gate=gate, overall=FIGURES))
    lines = [" ".join(line.split()) for line in info(path).splitlines()]
    assert any(line.endswith(row) for line in lines)
    assert f"gate {verdict}" in lines


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"0.5": 41}, "(all lengths) have 41 texts in the bin '0.5'"),
        ({"1e-05": -1, "3e-05": 42}, "(all lengths) have -1 texts in the bin '1e-05'"),
        ({"1e-05": 40}, "(all lengths) have 40 texts in total: expected 41"),
    ],
)
def test_a_histogram_that_does_not_add_up(capsys, changed, tmp_path, counts, message):
    figures = {**FIGURES, "error_counts": counts}
    artifact = changed(lambda manifest: manifest["certificate"].update(overall=figures))
    page = tmp_path / "page.html"
    assert cli.main(["info", str(artifact), "--html", str(page)]) == 1
    assert message in capsys.readouterr().err
    assert [found.name for found in tmp_path.iterdir()] == [artifact.name]


def test_sizes_are_checked_and_hashes_are_not(info, capsys, artifact_copy):
    weights = artifact_copy / WEIGHTS
    weights.write_bytes(bytes(weights.stat().st_size))
    info(artifact_copy)
    weights.write_bytes(b"")
    assert cli.main(["info", str(artifact_copy)]) == 1
    assert f"{WEIGHTS} has 0 bytes" in capsys.readouterr().err


def test_the_page_replaces_an_older_one(info, artifact_path, tmp_path):
    page = tmp_path / "page.HTML"
    page.write_text("older")
    info(artifact_path, "--html", page, "--json")
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [page]


def test_wrong_usage(capsys, artifact_path, tmp_path):
    with pytest.raises(SystemExit) as caught:
        cli.main(["info", str(artifact_path), "--html", str(tmp_path / "page.pdf")])
    assert caught.value.code == 2
    assert "expected a .html file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing/page.html", "does not exist. Create it first"), ("folder.html", "is a folder")],
)
def test_a_page_that_cannot_be_written(capsys, artifact_path, tmp_path, name, message):
    (tmp_path / "folder.html").mkdir()
    assert cli.main(["info", str(artifact_path), "--html", str(tmp_path / name)]) == 1
    done = capsys.readouterr()
    assert message in done.err
    assert done.out == ""


def test_no_artifact(capsys, tmp_path):
    assert cli.main(["info", str(tmp_path)]) == 1
    assert f"has no {MANIFEST}" in capsys.readouterr().err


def test_a_hub_id(info, monkeypatch, artifact_path):
    asked = []

    def fetch(*arguments):
        asked.append(arguments[:2])
        return artifact_path

    monkeypatch.setattr("koe5_onnx.artifact.artifact.fetch", fetch)
    assert info("owner/name", "--revision", "v1").startswith("tiny-seeded, int8\n")
    assert asked == [("owner/name", "v1"), ("owner/name", artifact_path.name)]


def test_it_runs_without_onnxruntime(info, artifact_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert info(artifact_path).startswith("tiny-seeded, int8\n")
