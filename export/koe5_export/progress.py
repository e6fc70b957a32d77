"""Progress callbacks of an export."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Callback with the stage name, the number of parts done and the total.

The first call of a stage has 0 parts done, the last one all parts.
"""


def silent(stage: str, done: int, total: int) -> None:
    """Ignore all progress."""
