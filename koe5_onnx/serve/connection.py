"""Cancel work when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from anyio import CancelScope
from starlette.types import Receive

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client disconnected before the response was sent."""


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work` and return its result. Cancel it if the client disconnects.

    Raises:
        ClientGoneError: The client disconnected and the work was canceled.
    """
    with CancelScope() as scope:
        watching = asyncio.ensure_future(_disconnected(receive))
        watching.add_done_callback(lambda task: None if task.cancelled() else scope.cancel())
        try:
            return await work
        finally:
            watching.cancel()
    raise ClientGoneError


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
