"""HTTP server for one artifact, with OpenAI's embeddings API and the API of text-embeddings-inference (TEI).

A request passes through these modules, in this order::

    protection        API key, size limit of the body, request ID, log line, metrics
    routing           path and method -> endpoint, JSON body -> model, result -> response
    openai_api,       JSON requests and responses, one module per API
    tei_api
    inputs            texts or token IDs, prompt, truncation -> Tokens
    request_embedder  looks up the cache, submits the other texts in pieces and waits for the result

The server uses the queue and the threads of AsyncEmbedder (koe5_onnx/engine). `app` builds the ASGI app and
`server` runs it under uvicorn. This package requires the extra `serve`; no other package imports it.
"""

from __future__ import annotations

from koe5_onnx.errors import MissingDependencyError

try:
    import fastapi  # noqa: F401
    import orjson  # noqa: F401
    import prometheus_client  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(str(error.name), "serve", "serving an artifact over HTTP") from error

from koe5_onnx.serve.app import create_app
from koe5_onnx.serve.server import serve
from koe5_onnx.serve.settings import Settings

__all__ = ["Settings", "create_app", "serve"]
