"""OpenAI's embeddings API: POST /v1/embeddings, GET /v1/models.

Source: https://platform.openai.com/docs/api-reference/embeddings. Beyond it: `input_type`, `prompt_name` and
`truncate` in a request; `tokens` and `truncated` with each embedding.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, FailFast, Field
from typing_extensions import TypeAliasType

from koe5_onnx import Encoded
from koe5_onnx.serve.connection import unless_gone
from koe5_onnx.serve.inputs import Inputs, ModelNames, as_inputs, choose_prompt, require_dimensions
from koe5_onnx.serve.protection import NOTES
from koe5_onnx.serve.refusals import UNKNOWN_MODEL, Refusal
from koe5_onnx.serve.request_embedder import RequestEmbedder

TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
# The first fault is enough: a large body could hold a million.
Texts = TypeAliasType("Texts", Annotated[list[str], FailFast()])
TokenIds = TypeAliasType("TokenIds", Annotated[list[TokenId], FailFast()])
ManyTokenIds = TypeAliasType("ManyTokenIds", Annotated[list[TokenIds], FailFast()])
AnyInputs = str | Texts | TokenIds | ManyTokenIds

_EXAMPLE: dict[str, Any] = {
    "input": ["대한민국의 수도는 어디인가요?"],
    "model": "nlpai-lab/KoE5",
    "input_type": "query",
}


class EmbeddingsRequest(BaseModel):
    """What to embed, and how."""

    model_config = {"json_schema_extra": {"examples": [_EXAMPLE]}}

    input: AnyInputs = Field(description="A text, texts, the token ids of a text, or of several")
    model: str | None = Field(None, description="A name that GET /v1/models lists; ':query' adds the prompt")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, description="Components to keep; GET /v1/models lists the choices")
    user: str | None = None
    input_type: str | None = Field(None, description="'query' or 'passage': the prompt to put in front")
    prompt_name: str | None = Field(None, description="The same, by its other name")
    truncate: bool | Literal["NONE", "END"] | None = Field(
        None, description="Whether to cut long texts; the server's own policy where it is not given"
    )


class EmbeddingItem(BaseModel):
    """One embedding."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    tokens: int = Field(description="Of the text with its prompt, before it was cut")
    truncated: bool


class Usage(BaseModel):
    """Tokens that ran."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """Embeddings in the order of the inputs."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: Usage


class Model(BaseModel):
    """One name of the model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str
    dimensions: list[int] = Field(description="What `dimensions` of a request may be")


class ModelList(BaseModel):
    """All names of the model."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(BaseModel):
    """Why a request failed."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 408, 413, 415, 422, 429, 500, 503)
}


def openai_routes(requests: RequestEmbedder, names: ModelNames) -> APIRouter:
    """The routes, each with and without "/v1" where clients differ."""
    router = APIRouter(tags=["OpenAI"], responses=ERRORS)
    dimensions = list(requests.embedder.contract.dims)

    def described(name: str) -> Model:
        return Model(id=name, owned_by="koe5-onnx", dimensions=dimensions)

    async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
        inputs = _inputs_of(requests, names, body)
        encoded = await unless_gone(request, requests.embed(inputs, body.dimensions))
        request.scope[NOTES] |= requests.notes(inputs, encoded)
        answer = _answer(
            encoded, body.model or names.names[0], body.encoding_format, requests.embedder.contract.max_tokens
        )
        return Response(answer, media_type="application/json")

    async def models() -> ModelList:
        return ModelList(data=[described(name) for name in names.all])

    async def model(name: str) -> Model:
        if name not in names.all:
            raise Refusal(UNKNOWN_MODEL, f"there is no model {name[:200]!r}: GET /v1/models lists them")
        return described(name)

    for prefix in ("/v1", ""):
        in_schema = prefix == "/v1"
        router.add_api_route(
            f"{prefix}/embeddings", embeddings, methods=["POST"], response_model=EmbeddingsResponse,
            include_in_schema=in_schema, summary="Embed texts",
        )  # fmt: skip
        router.add_api_route(
            f"{prefix}/models", models, include_in_schema=in_schema, summary="Names of the model"
        )
        router.add_api_route(
            f"{prefix}/models/{{name:path}}", model, include_in_schema=in_schema, summary="One name"
        )
    return router


def _inputs_of(requests: RequestEmbedder, names: ModelNames, body: EmbeddingsRequest) -> Inputs:
    settings, contract = requests.settings, requests.embedder.contract
    require_dimensions(body.dimensions, contract)
    prompt = choose_prompt(
        {"input_type": body.input_type, "prompt_name": body.prompt_name},
        names.prompt_of(body.model),
        requests.default_prompt_name if _has_texts(body.input) else None,
        contract.prompts,
    )
    truncate = (
        settings.engine.overflow == "truncate" if body.truncate is None else body.truncate in (True, "END")
    )
    return as_inputs(
        body.input,
        prompt,
        truncate=truncate,
        param="input",
        max_inputs=settings.max_inputs,
        max_length=settings.max_text_characters,
    )


def _has_texts(raw: Any) -> bool:
    return isinstance(raw, str) or (bool(raw) and isinstance(raw[0], str))


def _answer(encoded: Encoded, model: str, encoding_format: str | None, limit: int) -> bytes:
    counts = encoded.tokens.tolist()
    rows = zip(encoded.embeddings, counts, encoded.truncated.tolist(), strict=True)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": str(base64.b64encode(row.astype("<f4", copy=False)), "ascii")
            if encoding_format == "base64"
            else row,
            "tokens": tokens,
            "truncated": truncated,
        }
        for index, (row, tokens, truncated) in enumerate(rows)
    ]
    ran = sum(min(tokens, limit) for tokens in counts)
    usage = {"prompt_tokens": ran, "total_tokens": ran}
    whole = {"object": "list", "data": data, "model": model, "usage": usage}
    return orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY)
