"""The API of text-embeddings-inference: /embed, /similarity, /tokenize, /info, /health, /metrics.

Source: https://github.com/huggingface/text-embeddings-inference/blob/main/docs/openapi.json
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from koe5_onnx import Encoded, __version__
from koe5_onnx.serve.connection import unless_gone
from koe5_onnx.serve.inputs import (
    Inputs,
    ModelNames,
    RawInputs,
    as_inputs,
    choose_prompt,
    require_dimensions,
)
from koe5_onnx.serve.openai_api import AnyInputs, Texts
from koe5_onnx.serve.protection import NOTES
from koe5_onnx.serve.refusals import INVALID, TOO_MANY_TOKENS, UNHEALTHY, Refusal
from koe5_onnx.serve.request_embedder import RequestEmbedder

Direction = Literal["Left", "Right", "left", "right"]


class EmbedRequest(BaseModel):
    """Texts to embed."""

    model_config = {
        "json_schema_extra": {"examples": [{"inputs": "대한민국의 수도는?", "prompt_name": "query"}]}
    }

    inputs: AnyInputs
    normalize: bool = True
    prompt_name: str | None = None
    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    dimensions: int | None = None


class SimilarityInputs(BaseModel):
    """One text, and those to compare with it."""

    source_sentence: str
    sentences: Texts


class SimilarityParameters(BaseModel):
    """How the texts are embedded."""

    prompt_name: str | None = None
    truncate: bool | None = None
    truncation_direction: Direction = "Right"


class SimilarityRequest(BaseModel):
    """Texts to compare."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class TokenizeRequest(BaseModel):
    """Texts to tokenize."""

    inputs: str | Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None


class Token(BaseModel):
    """One token; `start` and `stop` count characters of the text with its prompt."""

    id: int
    text: str
    special: bool
    start: int
    stop: int


class Info(BaseModel):
    """What is served, and within which limits."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    dim: int
    dimensions: Annotated[list[int], Field(description="What `dimensions` of a request may be")]
    prompts: dict[str, str]
    default_prompt_name: str | None
    provider: str
    graph: str
    """Which graph runs, and why."""
    cosine_to_pytorch_min: Annotated[float | None, Field(description="Of the artifact's certificate")]


class TeiError(BaseModel):
    """TEI's shape of an error."""

    error: str
    error_type: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": TeiError} for status in (400, 401, 404, 408, 413, 415, 422, 424, 429, 503)
}


def tei_routes(requests: RequestEmbedder, names: ModelNames) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["text-embeddings-inference"], responses=ERRORS)

    # At "/" too: clients that know a server's address only, as huggingface_hub's InferenceClient, ask there.
    @router.post("/", response_model=list[list[float]], include_in_schema=False)
    @router.post("/embed", response_model=list[list[float]], summary="Embed texts")
    async def embed(request: Request, body: EmbedRequest) -> Response:
        contract = requests.embedder.contract
        _require_own_length(body.normalize, contract.normalize)
        require_dimensions(body.dimensions, contract)
        encoded = await _embed(requests, request, body.inputs, body, body.dimensions)
        return _json(encoded.embeddings)

    @router.post("/similarity", response_model=list[float], summary="Compare texts")
    async def similarity(request: Request, body: SimilarityRequest) -> Response:
        sentences = as_inputs(
            body.inputs.sentences,
            None,
            truncate=True,
            param="sentences",
            max_inputs=requests.settings.max_inputs - 1,
            max_length=requests.settings.max_text_characters,
        ).texts
        parameters = body.parameters or SimilarityParameters()
        encoded = await _embed(requests, request, [body.inputs.source_sentence, *sentences], parameters)
        return _json(requests.embedder.similarity(encoded.embeddings[:1], encoded.embeddings[1:])[0])

    @router.post("/tokenize", response_model=list[list[Token]], summary="Texts to tokens, never cut")
    async def tokenize(request: Request, body: TokenizeRequest) -> Response:
        return _json(await unless_gone(request, _tokenize(requests, body)))

    @router.get("/info", summary="What is served")
    async def info() -> Info:
        return _info(requests, names)

    @router.get("/health", response_class=Response, summary="200 where embeddings work")
    async def health() -> Response:
        if not await requests.is_healthy():
            raise Refusal(UNHEALTHY, "the last batch failed, and so does another; the log says more")
        return Response()

    @router.get("/metrics", response_class=Response, summary="For Prometheus")
    async def metrics() -> Response:
        return Response(requests.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


async def _embed(
    requests: RequestEmbedder,
    request: Request,
    raw: RawInputs,
    body: EmbedRequest | SimilarityParameters,
    dim: int | None = None,
) -> Encoded:
    if body.truncation_direction.lower() == "left":
        raise Refusal(
            INVALID,
            "truncation_direction is Left: expected Right, as texts are cut at their end",
            param="truncation_direction",
        )
    settings = requests.settings
    truncate = settings.engine.overflow == "truncate" if body.truncate is None else body.truncate
    has_ids = not isinstance(raw, str) and bool(raw) and not isinstance(raw[0], str)
    prompt = None if has_ids and body.prompt_name is None else _prompt(requests, body.prompt_name)
    inputs = as_inputs(
        raw,
        prompt,
        truncate=truncate,
        param="inputs",
        max_inputs=settings.max_inputs,
        max_length=settings.max_text_characters,
    )
    encoded = await unless_gone(request, requests.embed(inputs, dim))
    request.scope[NOTES] |= requests.notes(inputs, encoded)
    return encoded


async def _tokenize(requests: RequestEmbedder, body: TokenizeRequest) -> list[list[dict[str, Any]]]:
    settings = requests.settings
    inputs = as_inputs(
        body.inputs,
        _prompt(requests, body.prompt_name),
        truncate=False,
        param="inputs",
        max_inputs=settings.max_inputs,
        max_length=settings.max_text_characters,
    )
    return await requests.in_time(
        requests.tokenized(
            lambda: _tokens(requests, inputs, specials=body.add_special_tokens), inputs.characters
        )
    )


def _prompt(requests: RequestEmbedder, name: str | None) -> str | None:
    return choose_prompt(
        {"prompt_name": name}, None, requests.default_prompt_name, requests.embedder.contract.prompts
    )


def _require_own_length(normalize: bool, own: bool) -> None:
    if normalize != own:
        raise Refusal(INVALID, f"normalize is {normalize}: this model gives {own} only", param="normalize")


def _tokens(requests: RequestEmbedder, inputs: Inputs, *, specials: bool) -> list[list[dict[str, Any]]]:
    # A piece costs a hundred times a token that is embedded, so the same limit bounds them by characters.
    limit = requests.settings.max_request_tokens
    if (characters := sum(map(len, inputs.texts))) > limit:
        raise Refusal(
            TOO_MANY_TOKENS,
            f"the texts have {characters:,} characters: expected at most {limit:,}",
            param="inputs",
        )
    return [
        [
            dataclasses.asdict(piece)
            for piece in requests.embedder.pieces(text, inputs.prompt_name, prompt=inputs.prompt)
            if specials or not piece.special
        ]
        for text in inputs.texts
    ]


def _info(requests: RequestEmbedder, names: ModelNames) -> Info:
    embedder, settings = requests.embedder, requests.settings
    manifest, contract = embedder.artifact.manifest, embedder.contract
    is_packed = embedder.session.graph.is_packed
    certificate = manifest.fused_certificate if is_packed else manifest.certificate
    return Info(
        model_id=names.names[0],
        model_sha=manifest.source.revision,
        model_dtype=manifest.precision,
        model_type={"embedding": {"pooling": contract.pooling}},
        max_concurrent_requests=settings.max_requests,
        max_input_length=contract.max_tokens,
        max_batch_tokens=embedder.max_batch_tokens,
        max_client_batch_size=settings.max_inputs,
        auto_truncate=settings.engine.overflow == "truncate",
        tokenization_workers=2,
        version=__version__,
        dim=contract.dim,
        dimensions=list(contract.dims),
        prompts=dict(contract.prompts),
        default_prompt_name=requests.default_prompt_name,
        provider=embedder.session.providers[0],
        graph=embedder.session.graph.reason,
        cosine_to_pytorch_min=certificate.overall.cosine_min if certificate else None,
    )


def _json(found: Any) -> Response:
    if isinstance(found, np.ndarray):
        found = np.ascontiguousarray(found)
    return Response(orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
