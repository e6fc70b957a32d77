"""Fenced blocks of the documentation: location, language, and why a block or a part of it is not run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").glob("*.md"),
        *(ROOT / "kernels").glob("*.md"),
        *(ROOT / "benchmarks/decisions").glob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    )
)

LANGUAGES = ("python", "sh", "console", "json", "yaml", "toml", "js", "java", "text")
"""Allowed languages of fences. "text" is for blocks that are neither code nor run, such as messages."""

_FENCE = re.compile(r"^ *(`{3,})(.*)$")
_NOT_RUN = re.compile(r"^ *<!-- not run: (.+) -->$")


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block."""

    page: str
    """Path of the page, relative to the root."""
    line: int
    """Line number of the opening fence, starting at 1."""
    language: str
    text: str
    reason: str | None
    """Reason why a part of the block is not run; None if all of it runs."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(file: Path) -> list[CodeBlock]:
    """Return all fenced blocks of a page in order."""
    return blocks_in(file, file.relative_to(ROOT).as_posix())


def blocks_in(file: Path, page: str) -> list[CodeBlock]:
    """Return all fenced blocks of any Markdown file in order, with `page` as its name."""
    return list(_parse(page, file.read_text(encoding="utf-8").splitlines()))


def _parse(page: str, lines: list[str]) -> Iterator[CodeBlock]:
    before, opened = "", None
    body: list[str] = []
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if opened is not None:
            at, ticks, language, reason, indent = opened
            if fence and fence[1] == ticks and not fence[2].strip():
                yield CodeBlock(page, at, language, "\n".join(body) + "\n", reason)
                before, opened = "", None
            else:
                body.append(line.removeprefix(indent))
        elif fence:
            reason = _NOT_RUN.match(before)
            indent = line[: len(line) - len(line.lstrip(" "))]
            opened = number, fence[1], fence[2].strip(), reason[1] if reason else None, indent
            body = []
        elif line.strip():
            before = line
    assert opened is None, f"{page}: the block of line {opened and opened[0]} has no end"


def prose_of(file: Path) -> str:
    """Return a page with its fenced blocks replaced by empty lines."""
    lines, ticks = [], ""
    for line in file.read_text(encoding="utf-8").splitlines():
        fence, inside = _FENCE.match(line), ticks
        if fence and not ticks:
            ticks = fence[1]
        elif fence and fence[1] == ticks and not fence[2].strip():
            ticks = ""
        lines.append("" if ticks or inside else line)
    return "\n".join(lines)
