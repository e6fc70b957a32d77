"""Progress callbacks of an export."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Callback with the name of a stage, the number of parts that are done, and the number of all parts.

In the first call of a stage, no part is done; in the last call, all parts are done.
"""


def silent(stage: str, done: int, total: int) -> None:
    """Ignore all progress."""
