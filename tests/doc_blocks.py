"""The fenced blocks of the documentation: where they are, in which language, and why one is not run."""

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
        *(ROOT / "benchmarks").glob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    )
)

LANGUAGES = ("python", "sh", "console", "json", "yaml", "toml", "text")
"""What a fence may say; "text" is for what is neither code nor run, as a message."""

_FENCE = re.compile(r"^ *(`{3,})(.*)$")
_NOT_RUN = re.compile(r"^ *<!-- not run: (.+) -->$")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    """Its file, from the root."""
    line: int
    """Of its first fence, from 1."""
    language: str
    text: str
    reason: str | None
    """Why something in it is not run; None where all of it is."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(file: Path) -> list[Block]:
    """All fenced blocks of a page, in their order."""
    page = file.relative_to(ROOT).as_posix()
    return list(_parse(page, file.read_text(encoding="utf-8").splitlines()))


def _parse(page: str, lines: list[str]) -> Iterator[Block]:
    before, opened = "", None
    body: list[str] = []
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if opened is not None:
            at, ticks, language, reason, indent = opened
            if fence and fence[1] == ticks and not fence[2].strip():
                yield Block(page, at, language, "\n".join(body) + "\n", reason)
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
    """A page without its fenced blocks."""
    kept, ticks = [], ""
    for line in file.read_text(encoding="utf-8").splitlines():
        fence = _FENCE.match(line)
        if fence and not ticks:
            ticks = fence[1]
        elif fence and fence[1] == ticks and not fence[2].strip():
            ticks = ""
        elif not ticks:
            kept.append(line)
    return "\n".join(kept)
