"""Every Python, sh and console block of the documentation runs, or states why a part of it does not.

A page runs from top to bottom: its blocks run in one folder, each Python block in a separate process. A
block with `<!-- not run: REASON -->` is checked as far as possible.
"""

from __future__ import annotations

import ast
import doctest
import importlib.util
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from doc_blocks import LANGUAGES, PAGES, ROOT, CodeBlock, blocks_of
from doc_commands import REASONS, check, commands_of, lines_of

from koe5_onnx.cli import parse

OPTIONAL = {
    "bm25s",
    "chromadb",
    "faiss",
    "fastembed",
    "haystack",
    "kiwipiepy",
    "lance",
    "lancedb",
    "langchain_core",
    "langchain_openai",
    "langchain_text_splitters",
    "llama_index",
    "mteb",
    "openai",
    "optimum",
    "pyarrow",
    "pyspark",
    "qdrant_client",
    "ray",
    "sentence_transformers",
    "torch",
}
"""Third-party packages that a block may use. If one is not installed, the block is skipped."""
ANYWHERE = "127.0.0.1:8080"
"""Address of the server in the pages; the tests use a free port."""

BLOCKS = [block for page in PAGES for block in blocks_of(page)]


_SLOW = re.compile(r"^(koe5-onnx (export|tune)|python -m benchmarks) ", re.MULTILINE)
SLOW_PAGES = {block.page for block in BLOCKS if _SLOW.search(block.text)}


def of(*languages: str) -> list[object]:
    return [pytest.param(block, id=str(block)) for block in BLOCKS if block.language in languages]


def of_pages(*languages: str) -> list[object]:
    """Return the blocks in these languages, marked slow if their page has a slow command."""
    found = []
    for block in BLOCKS:
        if block.language in languages:
            marks = [pytest.mark.slow] * (block.page in SLOW_PAGES)
            found.append(pytest.param(block, id=str(block), marks=marks))
    return found


@pytest.mark.parametrize("block", [pytest.param(block, id=str(block)) for block in BLOCKS])
def test_blocks_have_a_known_language_and_reason(block):
    assert block.language in LANGUAGES, f"expected one of {', '.join(LANGUAGES)} after the fence"
    assert block.reason is None or block.reason in REASONS, f"expected one of {', '.join(REASONS)}"
    assert block.text.strip()


def test_no_reason_is_left_over():
    assert {block.reason for block in BLOCKS if block.reason} <= set(REASONS)


@pytest.mark.parametrize("block", of("json", "yaml", "toml"))
def test_data_parses(block):
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    else:
        yaml = pytest.importorskip("yaml")
        assert all(document is not None for document in yaml.safe_load_all(block.text))


@pytest.mark.parametrize("block", of_pages("python", "sh", "console"))
def test_block_runs(block, place_of, request):
    {"python": run_python, "sh": run_shell, "console": run_console}[block.language](block, place_of, request)


def run_python(block, place_of, request):
    tree = ast.parse(block.text, str(block))
    require_imports(tree)
    if block.reason is not None:
        return  # only the syntax and the imports can be checked
    place = place_of(block.page)
    script = place.folder / f"block_{block.line}.py"
    script.write_text(with_server(block, request), encoding="utf-8")
    done = place.run(sys.executable, script)
    assert done.returncode == 0, done.stdout


def require_imports(tree: ast.AST) -> None:
    """Skip if a third-party package is missing. A misspelled or undeclared package is a failure."""
    names = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for name in sorted(names):
        if importlib.util.find_spec(name) is None:
            assert name in OPTIONAL, f"there is no module {name}"
            pytest.skip(f"{name} is not installed")


def with_server(block: CodeBlock, request: pytest.FixtureRequest) -> str:
    """Return the block's text. If it names the server's address, replace it by that of a running server."""
    if ANYWHERE not in block.text and "localhost:8080" not in block.text:
        return block.text
    pytest.importorskip("fastapi")
    address = request.getfixturevalue("server")
    return block.text.replace(ANYWHERE, address).replace("localhost:8080", address)


def run_shell(block, place_of, request):
    run = [line for line in lines_of(block.text) if runs(block, line)]
    text = "\n".join(run)
    if not run:
        return  # `runs` has checked every line, and none is to be run
    require_commands(text)
    place = place_of(block.page)
    make_room(text, place.folder)
    if "koe5-onnx serve" not in text:
        text = with_server(CodeBlock(block.page, block.line, "sh", text, None), request)
    done = place.run("bash", "-euo", "pipefail", "-c", text.replace("curl ", "curl -sS --fail-with-body "))
    assert done.returncode == 0, done.stdout


def runs(block: CodeBlock, line: str) -> bool:
    """Return True if the line must be run.

    If the block's `not run` reason covers the line, check the line without running it and return False.
    """
    words = commands_of(line)
    if block.reason is None or not any(REASONS[block.reason](one) for one in words):
        for one in words:
            refused = [name for name in ("pip", "docker", "kubectl", "git", "make") if one[0] == name]
            assert not refused, f"{refused[0]} is not run by tests: say so by <!-- not run: REASON -->"
        return True
    for one in words:
        check(one)
    return False


def require_commands(text: str) -> None:
    """Skip if a system tool is missing."""
    for line in lines_of(text):
        for words in commands_of(line):
            if words[0] in ("curl", "jq", "nproc") and shutil.which(words[0]) is None:
                pytest.skip(f"{words[0]} is not installed")


def make_room(text: str, folder: Path) -> None:
    """Remove an artifact of the tests if the block creates one with the same name."""
    for line in lines_of(text):
        for words in commands_of(line):
            if words[:1] == ["koe5-onnx"] and words[1] in ("export", "import") and "--force" not in words:
                out = folder / parse(words[1:]).out
                if out.is_dir():
                    shutil.rmtree(out)


def run_console(block, place_of, request):
    """Run lines after `$ ` and compare the following lines with their output; "..." matches any text."""
    place = place_of(block.page)
    assert block.reason is None, "a console block shows what was printed: it must run"
    for command, expected in sessions(with_server(block, request)):
        done = place.run("bash", "-c", command)
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert doctest.OutputChecker().check_output(expected, done.stdout, flags), (
            f"$ {command}\nexpected:\n{expected}\nprinted:\n{done.stdout}"
        )


def sessions(text: str) -> list[tuple[str, str]]:
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not parts[0].strip(), "a console block must start with '$ ' and a command"
    return [(command, expected) for command, _, expected in (part.partition("\n") for part in parts[1:])]


READMES = ("README.md", "README.ko.md")


@pytest.mark.parametrize("name", READMES)
def test_the_readme_starts_with_charts_and_quick_starts(name):
    """The first 45 lines have both charts and three quick starts of at most six lines each."""
    head = "\n".join((ROOT / name).read_text(encoding="utf-8").splitlines()[:45])
    needed = (
        "images/speed.svg",
        "pareto.svg",
        "pip install",
        "koe5-onnx export",
        "import Embedder",
        "curl",
        "docker run",
    )
    assert [text for text in needed if text not in head] == []
    blocks = [block for block in BLOCKS if block.page == name and block.line <= 45]
    assert len(blocks) == 3
    assert max(len(block.text.splitlines()) for block in blocks) <= 6


@pytest.mark.parametrize("name", READMES)
def test_the_readme_is_short(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert "make demo" in text
    assert "make test" in text


def test_the_readmes_have_the_same_code():
    english, korean = ([code_of(block) for block in BLOCKS if block.page == name] for name in READMES)
    assert english == korean


def code_of(block: CodeBlock) -> str:
    return re.sub(r"  # .*", "", block.text)
