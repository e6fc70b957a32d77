"""API of text-embeddings-inference: /embed, /similarity, /tokenize, /info, /health, /metrics.

Source: https://github.com/huggingface/text-embeddings-inference/blob/main/docs/openapi.json
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ConfigDict

from koe5_onnx import __version__
from koe5_onnx.serve.connection import unless_gone
from koe5_onnx.serve.inputs import Documented, EmbedFields, Inputs, ModelNames, PromptFields
from koe5_onnx.serve.openai_api import AnyInputs, Texts
from koe5_onnx.serve.refusals import Reason, Refusal
from koe5_onnx.serve.request_embedder import RequestEmbedder

_MOST_CHARACTERS = 131_072
"""Maximum characters of a request to /tokenize, because a token of its response takes about 100 times the
memory of one that is embedded."""
_EXAMPLE: dict[str, Any] = {"inputs": "대한민국의 수도는?", "prompt_name": "query"}


class EmbedRequest(EmbedFields):
    """Request for embeddings."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    inputs: AnyInputs
    """A text, a list of texts, the token IDs of a text, or a list of those."""


class SimilarityInputs(Documented):
    """A text and the texts to compare with it."""

    source_sentence: str
    """The text to compare with the others."""
    sentences: Texts
    """The other texts."""


class SimilarityRequest(EmbedFields):
    """Request for the similarity of texts."""

    inputs: SimilarityInputs
    """The texts to compare."""


class TokenizeRequest(PromptFields):
    """Request for the tokens of texts."""

    inputs: str | Texts
    """A text or a list of texts."""
    add_special_tokens: bool = True
    """True to include `<s>` and `</s>`."""


class Token(Documented):
    """A token of a text with its prompt."""

    id: int
    """Token ID."""
    text: str
    """Part of the text that the token covers, or the name of a special token."""
    special: bool
    """True for `<s>` and `</s>`."""
    start: int
    """Offset of the first character in the NFC form of the text with its prompt; 0 for a special token."""
    stop: int
    """Offset after the last character; 0 for a special token."""


class Info(Documented):
    """Description of the model and the limits of the server."""

    model_id: str
    """Repository or folder name of the checkpoint."""
    model_sha: str | None
    """Commit of the repository; null for a local checkpoint."""
    model_dtype: str
    """Precision of the artifact."""
    model_type: dict[str, Any]
    """Pooling, in TEI's format."""
    max_concurrent_requests: int
    max_input_length: int
    """Token limit of a text, special tokens included."""
    max_batch_tokens: int
    """Maximum number of tokens per batch, padding included."""
    max_client_batch_size: int
    """Maximum number of texts per request."""
    auto_truncate: bool
    """True if longer texts are truncated unless the request says otherwise."""
    tokenization_workers: int
    version: str
    """Version of koe5-onnx."""
    dim: int
    """Size of an embedding."""
    dimensions: list[int]
    """Sizes of embeddings that a request may ask for."""
    prompts: dict[str, str]
    default_prompt_name: str | None
    """Prompt name of requests without one; null for no prompt."""
    provider: str
    """ONNX Runtime's execution provider."""
    graph: str
    """The selected graph and the reason for it."""
    cosine_to_pytorch_min: float | None
    """Lowest cosine to PyTorch's embeddings in the artifact's certificate."""


class TeiError(Documented):
    """Error in TEI's format."""

    error: str
    """Reason, and what to do."""
    error_type: str
    """Kind of error, one of TEI's types."""


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": TeiError} for status in (400, 401, 404, 408, 413, 415, 422, 424, 429, 503)
}


def tei_routes(requests: RequestEmbedder, names: ModelNames) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["text-embeddings-inference"], responses=ERRORS)

    # Clients that know only the address of a server, such as huggingface_hub's InferenceClient, post to "/".
    @router.post("/", response_model=list[list[float]], include_in_schema=False)
    @router.post("/embed", response_model=list[list[float]], summary="Embed texts")
    async def embed(request: Request, body: EmbedRequest) -> Response:
        inputs = requests.inputs.read(body.inputs, body, "inputs")
        encoded, headers = await requests.answer(request, inputs, body.dimensions)
        return _json(encoded.embeddings, headers)

    @router.post("/similarity", response_model=list[float], summary="Compare texts")
    async def similarity(request: Request, body: SimilarityRequest) -> Response:
        inputs = requests.inputs.read(_texts(body.inputs), body, "inputs")
        encoded, headers = await requests.answer(request, inputs, body.dimensions)
        first, others = encoded.embeddings[:1], encoded.embeddings[1:]
        return _json(requests.embedder.similarity(first, others)[0], headers)

    @router.post("/tokenize", response_model=list[list[Token]], summary="Tokenize texts without truncation")
    async def tokenize(request: Request, body: TokenizeRequest) -> Response:
        inputs = requests.inputs.read(body.inputs, body, "inputs")
        work = lambda: _tokens(requests, inputs, specials=body.add_special_tokens)  # noqa: E731
        tokens = await unless_gone(request.receive, requests.in_time(requests.tokenized(work, inputs)))
        return _json(tokens, requests.report(request, inputs, {}))

    @router.get("/info", summary="Describe the model and the limits")
    async def info() -> Info:
        return _info(requests, names)

    @router.get("/health", response_class=Response, summary="Check that the server can embed")
    async def health() -> Response:
        if not await requests.is_healthy():
            message = "the last batch failed, and a retry failed too. See the server's log"
            raise Refusal(Reason.UNHEALTHY, message)
        return Response()

    @router.get("/metrics", response_class=Response, summary="Metrics for Prometheus")
    async def metrics() -> Response:
        return Response(requests.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def _texts(inputs: SimilarityInputs) -> list[str]:
    if not inputs.sentences:
        raise Refusal(Reason.EMPTY, "sentences is empty: expected at least one text", "sentences")
    return [inputs.source_sentence, *inputs.sentences]


def _tokens(requests: RequestEmbedder, inputs: Inputs, *, specials: bool) -> list[list[dict[str, Any]]]:
    limit = min(_MOST_CHARACTERS, requests.settings.max_request_tokens)
    if (characters := inputs.characters) > limit:
        message = f"the texts have {characters:,} characters: expected at most {limit:,}. Send fewer texts"
        raise Refusal(Reason.TOO_MANY_TOKENS, message, "inputs")
    return [
        [
            dataclasses.asdict(piece)
            for piece in requests.embedder.pieces(text, prompt="")
            if specials or not piece.special
        ]
        for text in inputs.prompted
    ]


def _info(requests: RequestEmbedder, names: ModelNames) -> Info:
    embedder, settings = requests.embedder, requests.settings
    manifest, contract = embedder.artifact.manifest, embedder.contract
    is_packed = embedder.session.graph.is_packed
    certificate = manifest.packed_certificate if is_packed else manifest.certificate
    return Info(
        model_id=names.names[0],
        model_sha=manifest.source.revision,
        model_dtype=manifest.precision,
        model_type={"embedding": {"pooling": contract.pooling}},
        max_concurrent_requests=settings.max_requests,
        max_input_length=contract.max_tokens,
        max_batch_tokens=embedder.queue_batch_tokens,
        max_client_batch_size=settings.max_inputs,
        auto_truncate=settings.engine.overflow == "truncate",
        tokenization_workers=2,
        version=__version__,
        dim=contract.dim,
        dimensions=list(contract.dims),
        prompts=dict(contract.prompts),
        default_prompt_name=requests.inputs.default_prompt_name,
        provider=embedder.session.providers[0],
        graph=embedder.session.graph.reason,
        cosine_to_pytorch_min=certificate.overall.cosine_min if certificate else None,
    )


def _json(found: Any, headers: Mapping[str, str] | None = None) -> Response:
    if isinstance(found, np.ndarray):
        found = np.ascontiguousarray(found)
    body = orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, headers=headers, media_type="application/json")
