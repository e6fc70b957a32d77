"""Helpers for concurrent calls of an AsyncEmbedder."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

LINE = "대한민국의 수도는 어디인가요?"


def started(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[asyncio.Task[Any]]:
    """Start a task for each call."""
    return [asyncio.create_task(call) for call in calls]


async def settled() -> None:
    """Let all tasks advance until they wait for a thread."""
    for _ in range(3):
        await asyncio.sleep(0)
