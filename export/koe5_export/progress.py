"""Progress of an export: each stage counts its parts."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the parts done and the parts in all: first with 0 parts, last with all."""


def silent(stage: str, done: int, total: int) -> None:
    """Ignore all progress."""
