"""The commands in the documentation's shell blocks: which ones run, and checks for the others."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from doc_blocks import ROOT

from benchmarks.__main__ import parse as parse_benchmark
from koe5_onnx.cli import parse

_OPERATORS = {"|", "&&", "||", ";", "&"}
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def lines_of(text: str) -> list[str]:
    """Return the logical lines of a shell block, with continuation lines joined and comments removed."""
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if shlex.split(line, comments=True)]


def commands_of(line: str) -> list[list[str]]:
    """Return the simple commands of a line as lists of words, without leading assignments."""
    found: list[list[str]] = [[]]
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for word in lexer:
        if word in _OPERATORS:
            found.append([])
        elif found[-1] or not re.fullmatch(r"[A-Z_0-9]+=.*", word):
            found[-1].append(word)
    return [words for words in found if words]


def _is_install(words: Sequence[str]) -> bool:
    return words[:2] in (["pip", "install"], ["git", "clone"], ["pip", "uninstall"], ["cd", "koe5-onnx"])


def _is_long(words: Sequence[str]) -> bool:
    return words[0] == "make" or words[:3] == ["python", "-m", "benchmarks"] or "build/large" in words


REASONS: dict[str, Callable[[Sequence[str]], bool]] = {
    "installs packages": _is_install,
    "takes minutes": _is_long,
    "needs the Hub": lambda words: any(re.fullmatch(r"[\w.-]+/[\w.-]+", word) for word in words),
    "needs a bucket": lambda words: "s3fs" in words or any("://" in word for word in words),
    "needs Docker": lambda words: words[0] == "docker",
    "needs a cluster": lambda words: words[0] in ("kubectl", "ray", "helm", "spark-submit") or "ray" in words,
    "run by tests/examples": lambda words: words[0] == "python" and words[1].startswith("docs/examples/"),
    "needs a GPU": lambda words: any(word.startswith(("cuda", "fp16")) or "gpu" in word for word in words),
    "needs what is not installed here": lambda words: words[0] in ("numactl", "taskset", "wrk"),
    "another project's code": lambda words: words[0] != "koe5-onnx",
}
"""Allowed reasons in `<!-- not run: REASON -->`, with functions that tell which commands a reason covers."""


def check(words: Sequence[str]) -> None:
    """Check the options, extras, targets and files of a command without running it.

    Raises:
        AssertionError: The command names an extra, a target or a file that does not exist.
        SystemExit: `koe5-onnx` or `python -m benchmarks` rejects the arguments.
    """
    if words[0] == "koe5-onnx":
        parse(_plain(words[1:]))
    elif words[:3] == ["python", "-m", "benchmarks"]:
        parse_benchmark(_plain(words[3:]))
    elif words[0] == "make":
        unknown = [word for word in words[1:] if "=" not in word and word not in _TARGETS]
        assert not unknown, f"the Makefile has no target {unknown[0]}"
    elif words[:2] == ["pip", "install"]:
        for word in words[2:]:
            _check_requirement(word)
    elif words[0] in ("docker", "kubectl"):
        _check_container(words)


def _check_container(words: Sequence[str]) -> None:
    for option, value in itertools.pairwise(words):
        assert option != "-f" or (ROOT / value).is_file(), f"{value} does not exist"
    if words[:2] == ["docker", "run"] and "koe5-onnx" in words:
        parse(["serve", *(words[words.index("koe5-onnx") + 1 :] or ["/model"])])


def _plain(words: Sequence[str]) -> list[str]:
    """Remove redirections."""
    found, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in (">", "<", ">>"):
            skip = True
        else:
            found.append(word)
    return found


def _check_requirement(word: str) -> None:
    match = re.fullmatch(r"(koe5-onnx|\.)\[([a-z,-]+)\]", word)
    if match is not None:
        unknown = set(match[2].split(",")) - set(_PROJECT["optional-dependencies"])
        assert not unknown, f"pyproject.toml has no extra {', '.join(sorted(unknown))}"
    elif word.startswith(("./", "../")) or word.endswith(".txt"):
        assert Path(ROOT, word).exists(), f"{word} does not exist"
