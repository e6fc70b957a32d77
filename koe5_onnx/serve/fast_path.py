"""The short way: a well-formed POST goes from its bytes to its route's function, past the framework's layers.

FastAPI describes the routes and answers everything else: other methods and content types, large bodies, those
that do not fit. A body that fails here begins anew there, so that each error is said in one place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from koe5_onnx.serve.response import header_of

Endpoint = Callable[[Request, Any], Awaitable[Response]]
Responses = Mapping[type[Exception], Callable[[Request, Any], Response]]
"""What is raised to what is answered."""

_MOST_BYTES = 65_536
"""Beyond that the layers cost nothing beside the texts, and a body is not to be parsed twice."""


class Direct:
    """ASGI middleware between the protection and FastAPI.

    Args:
        app: FastAPI's.
        responses: For what the routes' functions raise; all else is the caller's.
    """

    def __init__(self, app: ASGIApp, responses: Responses) -> None:
        self._app, self._responses, self._raised = app, responses, tuple(responses)
        self._endpoints: dict[str, tuple[type[BaseModel], Endpoint]] = {}

    def include_router(self, router: APIRouter) -> None:
        """Let the POST routes of a router take the short way: functions of a request and a `body`."""
        for route in router.routes:
            if isinstance(route, APIRoute) and "POST" in (route.methods or ()):
                self._endpoints[route.path] = (get_type_hints(route.endpoint)["body"], route.endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; or leave it, and all other scopes, to FastAPI."""
        known = self._endpoints.get(scope["path"]) if scope["type"] == "http" else None
        if known is None or scope["method"] != "POST" or not _is_json(scope):
            await self._app(scope, receive, send)
            return
        message = await receive()
        model, endpoint = known
        body = _read(model, message.get("body", b""))
        if body is None:
            await self._app(scope, replayed(message, receive), send)
            return
        response = await self._answer(endpoint, Request(scope, receive, send), body)
        await response(scope, receive, send)

    async def _answer(self, endpoint: Endpoint, request: Request, body: BaseModel) -> Response:
        try:
            return await endpoint(request, body)
        except self._raised as error:
            return self._responses[type(error)](request, error)


def _is_json(scope: Scope) -> bool:
    kind, _, _parameters = header_of(scope, b"content-type").partition(";")
    return kind.strip().lower() == "application/json"


def _read(model: type[BaseModel], body: bytes) -> BaseModel | None:
    """The body; None where it is large or does not fit. The error, which may hold all of it, is not kept."""
    if len(body) > _MOST_BYTES:
        return None
    try:
        return model.model_validate_json(body)
    except ValidationError:
        return None


def replayed(first: Message, receive: Receive) -> Receive:
    """`receive` that gives `first` once more, then what comes."""
    waiting = [first]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
