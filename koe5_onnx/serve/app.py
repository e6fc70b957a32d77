"""The ASGI app: routes over one RequestEmbedder, behind the protection; errors in each API's own shape."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from koe5_onnx import Embedder, InputError, __version__
from koe5_onnx.serve.connection import ClientGoneError
from koe5_onnx.serve.fast_path import Direct, Responses
from koe5_onnx.serve.inputs import ModelNames
from koe5_onnx.serve.logs import LOGGER
from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.openai_api import openai_routes
from koe5_onnx.serve.page import page_route
from koe5_onnx.serve.protection import CLIENT_GONE, DOCS_FILES, FAILED, Protection
from koe5_onnx.serve.refusals import BACKEND, INVALID, UNKNOWN_ROUTE, WRONG_METHOD, Refusal
from koe5_onnx.serve.request_embedder import RequestEmbedder
from koe5_onnx.serve.settings import Settings
from koe5_onnx.serve.tei_api import tei_routes
from koe5_onnx.serve.tracing import open_tracing

TEI_MODEL_NAME = "text-embeddings-inference"
"""What TEI's own examples give as the model's name, which TEI does not look at."""


def create_app(embedder: Embedder, settings: Settings) -> Any:
    """The server as an ASGI app. It is ready once its lifespan has begun, which embeds a text.

    Args:
        embedder: Opened; closed by its owner.
        settings: All that can be chosen.

    Raises:
        InputError: The default prompt is none of the contract's.
        MissingDependencyError: Traces are wanted and their packages are not installed.
    """
    prompts = embedder.contract.prompts
    name = settings.default_prompt_name
    if name is not None and name not in prompts:
        raise InputError(f"default_prompt_name is {name!r}: expected one of {', '.join(sorted(prompts))}")
    app = FastAPIOffline(
        title="koe5-onnx",
        version=__version__,
        summary="KoE5 text embeddings",
        lifespan=_lifespan,
        redoc_url=None,
        static_url=DOCS_FILES,
    )
    metrics = Metrics()
    responses = _responses(metrics)
    direct = Direct(app, responses)
    traced, tracing = open_tracing(direct, settings.otlp_endpoint)
    metrics.opened(embedder)
    requests = RequestEmbedder(embedder, settings, metrics, tracing)
    app.state.requests = requests
    own = embedder.artifact.manifest.source.repository
    names = ModelNames(list(dict.fromkeys([*settings.model_names, own, TEI_MODEL_NAME])), prompts)
    routers = [openai_routes(requests, names), tei_routes(requests, names), page_route()]
    for router in routers:
        app.include_router(router)
        direct.include_router(router)
    _shape_errors(app, responses)
    paths = [str(getattr(route, "path", "")) for router in routers for route in router.routes]
    return Protection(traced, settings, metrics, [*paths, "/docs", "/openapi.json"])


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    requests: RequestEmbedder = app.state.requests
    await asyncio.to_thread(requests.warm_up)
    # What is there now stays: a full collection would walk all of it in the middle of some request.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    await asyncio.to_thread(requests.close)
    LOGGER.info("stopped")


def _responses(metrics: Metrics) -> Responses:
    """What is answered where a route's function raises what belongs to the protocol."""

    def gone(_request: Request, _error: Exception) -> Response:
        metrics.client_gone()
        return Response(status_code=CLIENT_GONE)

    return {Refusal: _refuse, ClientGoneError: gone}


def _refuse(request: Request, refusal: Refusal) -> Response:
    return refusal.response(request.scope["path"])


def _shape_errors(app: FastAPI, responses: Responses) -> None:
    """Answer whatever goes wrong in the shape of the API that was asked."""
    everything: Responses = {
        **responses,
        Exception: lambda request, _error: _refuse(request, Refusal(BACKEND, FAILED)),
        RequestValidationError: lambda request, error: _refuse(request, describe(error)),
        HTTPException: lambda request, error: _refuse(request, _of_http(request, error)),
    }
    for kind in everything:

        async def handle(request: Request, error: Exception, kind: type[Exception] = kind) -> Response:
            return everything[kind](request, error)

        app.add_exception_handler(kind, handle)


def describe(error: RequestValidationError) -> Refusal:
    """What is wrong with a body, without repeating what it holds."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return Refusal(INVALID, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    param = place[0] if place else None
    if param is None:
        return Refusal(INVALID, f"the body: {first['msg']}; expected a JSON object, as application/json")
    if first["type"] == "missing":
        return Refusal(INVALID, f"{'.'.join(place)} is missing", param=param)
    wanted = "a text, a list of texts, token ids or a list of them; " if param in ("input", "inputs") else ""
    return Refusal(INVALID, f"{param}: expected {wanted}{first['msg']}", param=param)


def _of_http(request: Request, error: HTTPException) -> Refusal:
    """Starlette's own: no such route, another method, a body that cannot be parsed."""
    where = f"{request.method} {request.scope['path'][:200]}"
    if error.status_code == 404:
        return Refusal(UNKNOWN_ROUTE, f"there is no {where}: /docs lists what there is")
    if error.status_code == 405:
        allowed = Headers(error.headers).get("allow", "others")
        return Refusal(WRONG_METHOD, f"there is no {where}, only {allowed}", allow=allowed)
    return Refusal(INVALID, str(error.detail))
