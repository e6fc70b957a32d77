"""The client's end: work stops where nobody waits for its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from fastapi import Request

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client closed the connection before its answer."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work; cancel it where the client goes away.

    Raises:
        ClientGoneError: It went away; the work was cancelled.
    """
    working = cast("asyncio.Task[Any]", asyncio.current_task())
    is_gone = is_over = False

    def stop(watching: asyncio.Task[None]) -> None:
        nonlocal is_gone
        # Called late, it must not hit what comes after the work.
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
