"""The documentation matches the project: links and anchors, options, messages, metrics, the drawing."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import pytest
from doc_blocks import PAGES, ROOT, blocks_of, prose_of

from benchmarks.__main__ import BENCHMARKS
from koe5_onnx.cli import parse, verbs

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"")
SOURCES = [
    *(ROOT / "koe5_onnx").rglob("*.py"),
    *(ROOT / "export").rglob("*.py"),
    *(ROOT / "kernels/koe5_onnx_kernels").rglob("*.py"),
]
FOREIGN_OPTIONS = {
    "--all",
    "--auto-truncate",
    "--cpus",
    "--default-prompt",
    "--group",
    "--model-id",
    "--pooling",
    "--strict",
}
"""Options of docker, mypy, pip, tests/prose.py and text-embeddings-inference."""


def slug(heading: str) -> str:
    """Return GitHub's anchor for a heading.

    Source: https://docs.github.com/en/get-started/writing-on-github/getting-started-with-writing-and-formatting-on-github/basic-writing-and-formatting-syntax#section-links
    """
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors_of(file: Path) -> set[str]:
    return {slug(line.lstrip("#")) for line in prose_of(file).splitlines() if re.match(r"#{1,6} ", line)}


def pages():
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in PAGES]


@pytest.mark.parametrize("page", pages())
def test_links(page):
    for found in _LINK.finditer(prose_of(page)):
        target = next(filter(None, found.groups()))
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        assert file.is_relative_to(ROOT), f"{page.name} links to {target}, outside the project"
        if anchor and file.suffix == ".md":
            assert anchor in anchors_of(file), f"{page.name}: {name or page.name} has no heading #{anchor}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, f"docs/README.md lacks {page.name}"


def known_options(capsys) -> set[str]:
    found = set(FOREIGN_OPTIONS)
    names = [verb.__name__.rpartition(".")[2].removesuffix("_folder") for verb in verbs()]
    for name in names:
        with pytest.raises(SystemExit):
            parse([name, "--help"])
        found |= set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    from benchmarks.__main__ import parse as parse_benchmark

    for name in BENCHMARKS:
        with pytest.raises(SystemExit):
            parse_benchmark([name, "--help"])
        found |= set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    for example in (ROOT / "docs/examples").glob("*.py"):
        found |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', example.read_text(encoding="utf-8")))
    return found


def test_options_in_prose_exist(capsys):
    known = known_options(capsys)
    for page in PAGES:
        code = " ".join(re.findall(r"`([^`\n]+)`", prose_of(page)))
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code))
        assert named <= known, f"{page.relative_to(ROOT)} names {named - known}, which no command has"


def test_names_in_prose_exist():
    """Check metrics, environment variables and modules named in the pages."""
    source = "\n".join(
        file.read_text(encoding="utf-8")
        for folder in ("koe5_onnx", "export", "kernels", "deploy", "benchmarks", "Makefile", "pyproject.toml")
        for file in ([ROOT / folder] if (ROOT / folder).is_file() else (ROOT / folder).rglob("*"))
        if file.suffix in (".py", ".cc", ".h", ".txt", ".yaml", ".toml", "") and file.is_file()
    )
    for page in PAGES:
        for name in re.findall(r"\b(koe5_[a-z_]+|KOE5_[A-Z_]+)\b", page.read_text(encoding="utf-8")):
            # The Prometheus client appends the suffix to a counter's name.
            known = name.removesuffix("_total") in source
            assert known, f"{page.relative_to(ROOT)} names {name}, which is nowhere in the code"


def templates() -> list[re.Pattern[str]]:
    """Return a pattern for each string of 15 or more characters. The fields of an f-string match any text."""
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = [node] if isinstance(node, ast.Constant) else getattr(node, "values", [])
            if not isinstance(node, ast.JoinedStr | ast.Constant):
                continue
            texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            if sum(len(text) for text in texts if isinstance(text, str)) < 15:
                continue
            if all(text is None or isinstance(text, str) for text in texts):
                found.append("".join(".+" if text is None else re.escape(text) for text in texts))
    return [re.compile(text, re.DOTALL) for text in found]


def test_quoted_messages_occur_in_the_code():
    """Each message that the troubleshooting page quotes occurs in the code, word for word."""
    known = templates()
    quoted = [
        line
        for block in blocks_of(ROOT / "docs/troubleshooting.md")
        if block.language == "text"
        for line in block.text.splitlines()
    ]
    assert len(quoted) > 20
    # Remove prefixes that are too short to be found in the code.
    texts = [re.sub(r"^\w+(Error|Warning): (\S+ \(int8\) is (?=intended for))?", "", line) for line in quoted]
    assert [text for text in texts if not any(one.fullmatch(text) for one in known)] == []


def test_core_hours_match_the_rates_in_the_same_row():
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    rows = re.findall(r"int8 \| ([\d,]+) \(.*?\) \| ([\d,]+) core-hours \| ([\d,]+) core-hours", page)
    assert len(rows) == 2
    for row in rows:
        rate_per_core, short, pages = (int(figure.replace(",", "")) for figure in row)
        assert 1e9 * 100 / rate_per_core / 3600 == pytest.approx(short, rel=0.02)
        assert 1e9 * 388 / rate_per_core / 3600 == pytest.approx(pages, rel=0.02)


@pytest.fixture(scope="module")
def drawing():
    return ET.parse(ROOT / "docs/graph.svg").getroot()


def words(drawing, kind: str) -> set[str]:
    return {
        "".join(text.itertext()).strip()
        for text in drawing.iter("{http://www.w3.org/2000/svg}text")
        if kind in text.get("class", "").split()
    }


def all_nodes(graph):
    """Return the nodes of a graph, including those of branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


@pytest.mark.parametrize(
    ("kind", "file", "domain"),
    [("packed", "packed_cpu.onnx", "koe5"), ("padded", "model_quantized.onnx", None)],
)
def test_the_drawing_shows_the_operators_of_the_graph(drawing, kind, file, domain):
    """Every operator of a layer is drawn, and every drawn operator is in the graph."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(ROOT / "tests/data/tiny-int8/onnx" / file, load_external_data=False).graph
    nodes = [node for node in all_nodes(graph) if domain in (None, node.domain)]
    drawn = words(drawing, kind)
    assert drawn, f"docs/graph.svg has no text of class {kind}"
    assert drawn <= {node.op_type for node in nodes}
    layer = {node.op_type for node in nodes if node.name.startswith("layer.1.")}
    assert layer <= drawn, f"not drawn: {sorted(layer - drawn)}"
