"""Every fenced block of the documentation runs, or says right before it why something in it does not.

A page is read from top to bottom, as people do: its blocks run in one folder, each Python block in a process
of its own. What a block leaves out by `<!-- not run: REASON -->` is still checked as far as that goes.
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
from doc_blocks import LANGUAGES, PAGES, ROOT, Block, blocks_of
from doc_commands import REASONS, check, commands_of, lines_of

from koe5_onnx.cli import parse

OPTIONAL = {
    "chromadb",
    "faiss",
    "fastembed",
    "haystack",
    "lancedb",
    "langchain_core",
    "langchain_openai",
    "llama_index",
    "mteb",
    "openai",
    "pyarrow",
    "pyspark",
    "qdrant_client",
    "ray",
    "sentence_transformers",
    "torch",
}
"""Libraries of others that a block may use: where one is not installed, the block is skipped."""
ANYWHERE = "127.0.0.1:8080"
"""Where the pages' server listens; in the tests on a free port."""

BLOCKS = [block for page in PAGES for block in blocks_of(page)]


_SLOW = re.compile(r"^(koe5-onnx (export|tune)|python -m benchmarks) ", re.MULTILINE)
SLOW_PAGES = {block.page for block in BLOCKS if _SLOW.search(block.text)}


def of(*languages: str) -> list[object]:
    return [pytest.param(block, id=str(block)) for block in BLOCKS if block.language in languages]


def of_pages(*languages: str) -> list[object]:
    """Blocks to run."""
    found = []
    for block in BLOCKS:
        if block.language in languages:
            marks = [pytest.mark.slow] * (block.page in SLOW_PAGES)
            found.append(pytest.param(block, id=str(block), marks=marks))
    return found


@pytest.mark.parametrize("block", [pytest.param(block, id=str(block)) for block in BLOCKS])
def test_a_block_says_what_it_is(block):
    assert block.language in LANGUAGES, f"expected one of {', '.join(LANGUAGES)} behind the fence"
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
def test_it_runs(block, place_of, request):
    {"python": run_python, "sh": run_shell, "console": run_console}[block.language](block, place_of, request)


def run_python(block, place_of, request):
    tree = ast.parse(block.text, str(block))
    require_imports(tree)
    if block.reason is not None:
        return  # it is Python; that is all that can be said
    place = place_of(block.page)
    script = place.folder / f"block_{block.line}.py"
    script.write_text(with_server(block, request), encoding="utf-8")
    done = place.run(sys.executable, script)
    assert done.returncode == 0, done.stdout


def require_imports(tree: ast.AST) -> None:
    """Skip where a library of others is missing; a misspelt or forgotten one is a failure."""
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


def with_server(block: Block, request: pytest.FixtureRequest) -> str:
    """The block's text with the address of a server that really runs, where it speaks to one."""
    if ANYWHERE not in block.text and "localhost:8080" not in block.text:
        return block.text
    pytest.importorskip("fastapi")
    address = request.getfixturevalue("server")
    return block.text.replace(ANYWHERE, address).replace("localhost:8080", address)


def run_shell(block, place_of, request):
    run = [line for line in lines_of(block.text) if runs(block, line)]
    text = "\n".join(run)
    if not run:
        return  # all of it was checked only
    require_commands(text)
    place = place_of(block.page)
    make_room(text, place.folder)
    if "koe5-onnx serve" not in text:
        text = with_server(Block(block.page, block.line, "sh", text, None), request)
    done = place.run("bash", "-euo", "pipefail", "-c", text.replace("curl ", "curl -sS --fail-with-body "))
    assert done.returncode == 0, done.stdout


def runs(block: Block, line: str) -> bool:
    """Whether a line is run; else it is checked here, and its reason with it."""
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
    """Skip where a tool of the system is missing."""
    for line in lines_of(text):
        for words in commands_of(line):
            if words[0] in ("curl", "jq", "nproc") and shutil.which(words[0]) is None:
                pytest.skip(f"{words[0]} is not installed")


def make_room(text: str, folder: Path) -> None:
    """Remove the tests' own artifact where the block is about to make one of that name."""
    for line in lines_of(text):
        for words in commands_of(line):
            if words[:1] == ["koe5-onnx"] and words[1] in ("export", "import") and "--force" not in words:
                out = folder / parse(words[1:]).out
                if out.is_dir():
                    shutil.rmtree(out)


def run_console(block, place_of, request):
    """Lines behind `$ ` are commands; what follows is what they print, "..." for any part of it."""
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
    assert not parts[0].strip(), "a console block begins with a command behind '$ '"
    return [(command, expected) for command, _, expected in (part.partition("\n") for part in parts[1:])]


def test_the_first_lines_of_the_readme():
    """What it is, install, six lines of code, the measured table, the two commands: within 40 lines."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    head = "\n".join(lines)
    for needed in ("pip install", "from koe5_onnx import Embedder", "make demo", "make test", "tokens/s"):
        assert needed in head, f"the README's first 40 lines lack {needed}"
    code = next(block for block in BLOCKS if block.page == "README.md" and block.language == "python")
    assert len(code.text.splitlines()) <= 6
