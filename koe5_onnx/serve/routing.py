"""Call the endpoint of a request: find it by path and method, parse the JSON body, send the response.

FastAPI's layers cost 80 us per request, half as much as everything else in the event loop. So FastAPI only
declares the routes and describes them (page.py).
"""

from __future__ import annotations

import codecs
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple, get_args, get_type_hints

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from koe5_onnx.serve.refusals import Reason, Refusal

BODY = "koe5.body"
"""Key in the ASGI scope of the body of a request."""
NOTES = "koe5.notes"
"""Key in the ASGI scope of a dict whose entries are added to the request's log line."""


class _Action(NamedTuple):
    endpoint: Callable[..., Awaitable[Response | BaseModel]]
    model: type[BaseModel] | None
    """Model of the body; None for GET, which has no body."""


class Routing:
    """ASGI app that calls the endpoints of routers, and passes the lifespan to another app.

    An endpoint of POST takes the request and its body, one of GET the parameters of its path. It returns a
    response or a model, or raises Refusal.
    """

    def __init__(self, lifespan: ASGIApp) -> None:
        self._lifespan = lifespan
        self.paths: dict[str, dict[str, _Action]] = {}
        """Actions by path and method."""
        self._patterns: list[APIRoute] = []

    def include_router(self, router: APIRouter) -> None:
        """Add routes with one method each, GET or POST."""
        for route in router.routes:
            if not isinstance(route, APIRoute):
                continue
            (method,) = route.methods or ("GET",)
            model = get_type_hints(route.endpoint)["body"] if method == "POST" else None
            # uvicorn leaves the body out of a response to HEAD.
            for name in ("GET", "HEAD") if method == "GET" else (method,):
                self.paths.setdefault(route.path, {})[name] = _Action(route.endpoint, model)
            if route.param_convertors:
                self._patterns.append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request.

        Raises:
            Refusal: The request cannot be answered. Protection sends the error.
            ClientGoneError: The client disconnected.
        """
        if scope["type"] != "http":
            await self._lifespan(scope, receive, send)
            return
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        methods, parameters = self._find(request.scope["path"])
        if (action := methods.get(request.method)) is None:
            return _without_action(request, methods)
        if action.model is None:
            found = await action.endpoint(**parameters)
        else:
            found = await action.endpoint(request, _body(action.model, request))
        if isinstance(found, Response):
            return found
        return Response(found.model_dump_json(), media_type="application/json")

    def _find(self, path: str) -> tuple[Mapping[str, _Action], Mapping[str, str]]:
        """Return the actions of a path by method, and the parameters in the path."""
        if path in self.paths:
            return self.paths[path], {}
        for route in self._patterns:
            if found := route.path_regex.match(path):
                return self.paths[route.path], found.groupdict()
        return {}, {}


def _without_action(request: Request, methods: Iterable[str]) -> Response:
    """Respond to OPTIONS, except for CORS preflights, which app.py answers if CORS is allowed.

    Raises:
        Refusal: The path or the method is unknown.
    """
    path = request.scope["path"]
    allow = ", ".join(sorted(methods)) or "GET, HEAD, POST"
    is_preflight = "access-control-request-method" in request.headers
    if request.method == "OPTIONS" and not is_preflight and (methods or path == "*"):
        return Response(status_code=204, headers={"allow": allow})
    where = f"{request.method} {path[:200]}"
    if not methods:
        raise Refusal(Reason.UNKNOWN_ROUTE, f"there is no {where}. See /docs for all routes")
    raise Refusal(Reason.WRONG_METHOD, f"there is no {where}: use {allow}", allow=allow)


def _body(model: type[BaseModel], request: Request) -> BaseModel:
    """Return the validated body.

    Raises:
        Refusal: The body is invalid.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Browsers send other content types to any host without a CORS preflight.
    if not kind.startswith("application/") or not kind.endswith(("/json", "+json")):
        raise Refusal(Reason.INVALID, f"content-type is {kind[:40]!r}: expected application/json")
    try:
        # orjson needs 105 MiB less for a body of 8 MiB of empty lists than pydantic's parser.
        return model.model_validate(orjson.loads(request.scope[BODY].removeprefix(codecs.BOM_UTF8)))
    except orjson.JSONDecodeError as error:
        raise Refusal(Reason.INVALID, f"the body is not JSON in UTF-8: {error}") from None
    except ValidationError as error:
        raise _invalid(model, error) from None


def _invalid(model: type[BaseModel], error: ValidationError) -> Refusal:
    """Return a refusal that describes an invalid body without quoting its values."""
    first, *others = error.errors(include_url=False, include_input=False)
    place = [str(part) for part in first["loc"]]
    if not place:
        return Refusal(Reason.INVALID, f"the body is invalid ({first['msg']}): expected a JSON object")
    name, field = place[0], model.model_fields.get(place[0])
    if first["type"] == "missing":
        return Refusal(Reason.INVALID, f"{'.'.join(place)} is missing", name)
    if name not in ("input", "inputs") or field is None:
        return Refusal(Reason.INVALID, f"{name} is invalid: {first['msg']}", name)
    if not get_args(field.annotation):
        return Refusal(Reason.INVALID, f"{'.'.join(place)} is invalid: {first['msg']}", name)
    # There is an error for each type that the field may have. The closest type fails at the last item.
    items = [part for one in (first, *others) for part in one["loc"][:3] if isinstance(part, int)]
    found = f"{name}[{max(items)}]" if items else name
    described = str(field.description)
    expected = described[0].lower() + described[1:].removesuffix(".")
    return Refusal(Reason.INVALID, f"{found} is invalid: expected {expected}", name)
