"""An HTTP server for one artifact: OpenAI's embeddings API and that of text-embeddings-inference.

What happens to a request, one file a step::

    protection        size of the body, API key, request id, log line, metrics
    fast_path         well-formed requests past FastAPI, which answers all others
    openai_api,       JSON in and out: one file per API, over the same inputs
    tei_api
    inputs            texts or token ids, prompt, truncation -> Tokens
    request_embedder  submits to the queue, waits for the answer or until the client disconnects

The queue and the threads that run its batches are those of AsyncEmbedder (koe5_onnx/engine). `app` puts all
together, `server` runs it under uvicorn. This package requires the extra `serve`; nothing else imports it.
"""

from __future__ import annotations

from koe5_onnx.errors import MissingDependencyError

try:
    import fastapi
    import orjson
    import prometheus_client
    import uvicorn
except ImportError as error:
    raise MissingDependencyError(str(error.name), "serve", "serving an artifact over HTTP") from error

from koe5_onnx.serve.app import create_app
from koe5_onnx.serve.server import serve
from koe5_onnx.serve.settings import Settings

__all__ = ["Settings", "create_app", "serve"]

del fastapi, orjson, prometheus_client, uvicorn
