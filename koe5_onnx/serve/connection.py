"""Cancel work when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from fastapi import Request

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client disconnected before the response was sent."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work` and return its result. Cancel it if the client disconnects.

    Raises:
        ClientGoneError: The client disconnected and the work was canceled.
    """
    working = cast("asyncio.Task[Any]", asyncio.current_task())
    is_gone = is_over = False

    def stop(watching: asyncio.Task[None]) -> None:
        nonlocal is_gone
        # This callback may run after the work has ended, when canceling would hit later code.
        if not is_over and not watching.cancelled():
            is_gone = True
            working.cancel()

    watching = asyncio.ensure_future(_disconnected(request))
    watching.add_done_callback(stop)
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and not working.uncancel():
            raise ClientGoneError from None
        raise
    finally:
        is_over = True
        watching.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
