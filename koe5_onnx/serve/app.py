"""The ASGI app: the routes of OpenAI's API, of TEI's API and of the pages, and the middleware around them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from koe5_onnx import Embedder, InputError, __version__
from koe5_onnx.serve.inputs import ModelNames
from koe5_onnx.serve.logs import LOGGER
from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.openai_api import openai_routes
from koe5_onnx.serve.page import page_routes
from koe5_onnx.serve.protection import Protection
from koe5_onnx.serve.request_embedder import RequestEmbedder
from koe5_onnx.serve.routing import Routing
from koe5_onnx.serve.settings import Settings
from koe5_onnx.serve.tei_api import tei_routes
from koe5_onnx.serve.tracing import open_tracing

TEI_MODEL_NAME = "text-embeddings-inference"
"""Model name in TEI's own examples. TEI ignores the name, so the server accepts this one."""


def create_app(embedder: Embedder, settings: Settings) -> Any:
    """Return the server as an ASGI app. Its lifespan startup embeds a few texts to warm up.

    Args:
        embedder: An open Embedder. The caller closes it.
        settings: Settings of the server.

    Raises:
        InputError: The default prompt name is not one of the contract's.
        MissingDependencyError: An OTLP endpoint is set and the extra `otel` is not installed.
    """
    prompts = embedder.contract.prompts
    name = settings.default_prompt_name
    if name is not None and name not in prompts:
        raise InputError(f"default_prompt_name is {name!r}: expected one of {', '.join(sorted(prompts))}")
    metrics = Metrics()
    metrics.opened(embedder)
    described = FastAPI(
        title="koe5-onnx",
        version=__version__,
        summary="KoE5 text embeddings",
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        lifespan=_lifespan,
    )
    routing = Routing(described)
    protected = Protection(routing, settings, metrics, routing.paths)
    app, tracing = open_tracing(protected, settings.otlp_endpoint)
    requests = RequestEmbedder(embedder, settings, metrics, tracing)
    described.state.requests = requests
    own = embedder.artifact.manifest.source.repository
    names = ModelNames(list(dict.fromkeys([*settings.model_names, own, TEI_MODEL_NAME])), prompts)
    pages = page_routes(described, settings.root_path)
    for router in (openai_routes(requests, names), tei_routes(requests, names), pages):
        described.include_router(router)
        routing.include_router(router)
    return Cors(app, settings.cors_allow_origins) if settings.cors_allow_origins else app


class Cors(CORSMiddleware):
    """CORS headers on all responses, errors included. Preflight requests need no API key."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            [origin.rstrip("/") for origin in origins],
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=("*",),
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return a response whose body is empty if the request is allowed."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            response.status_code, response.body = 204, b""
            del response.headers["content-length"], response.headers["content-type"]
        return response


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    requests: RequestEmbedder = app.state.requests
    await asyncio.to_thread(requests.warm_up)
    # Exclude the objects that exist now from garbage collection, which could delay a request.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    await asyncio.to_thread(requests.close)
    LOGGER.info("stopped")
