"""OpenAI's embeddings API: POST /v1/embeddings, GET /v1/models.

Source: https://platform.openai.com/docs/api-reference/embeddings. Requests may also have the fields of
`EmbedFields` and `output_dtype`, which has other names in the APIs of Jina AI and Cohere. Each embedding in a
response also has `tokens`, `truncated` and, in int8, `scale`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, BeforeValidator, ConfigDict, FailFast, Field
from typing_extensions import TypeAliasType

from koe5_onnx import Encoded
from koe5_onnx.artifact.matryoshka import to_bits, to_int8
from koe5_onnx.serve.inputs import Documented, EmbedFields, ModelNames
from koe5_onnx.serve.refusals import Reason, Refusal
from koe5_onnx.serve.request_embedder import RequestEmbedder

TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
# FailFast stops at the first error, because a large body could have a million of them.
Texts = TypeAliasType("Texts", Annotated[list[str], FailFast()])
TokenIds = TypeAliasType("TokenIds", Annotated[list[TokenId], FailFast()])
ManyTokenIds = TypeAliasType("ManyTokenIds", Annotated[list[TokenIds], FailFast()])
AnyInputs = str | Texts | TokenIds | ManyTokenIds

Format = Literal["float", "base64", "int8", "binary", "ubinary"]

_EXAMPLE: dict[str, Any] = {
    "input": ["대한민국의 수도는 어디인가요?"],
    "model": "nlpai-lab/KoE5",
    "input_type": "query",
}


def _only(given: Any) -> Any:
    """Return the only item of a list, since Cohere's field is a list."""
    return given[0] if isinstance(given, list) and len(given) == 1 else given


class EmbeddingsRequest(EmbedFields):
    """Request for embeddings."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    input: AnyInputs
    """A text, a list of texts, the token IDs of a text, or a list of those."""
    model: str | None = None
    """A name that GET /v1/models lists. The suffix ':query' selects that prompt."""
    encoding_format: Format | None = None
    """'base64' for vectors in base64, or one of the values of output_dtype."""
    output_dtype: Annotated[
        Format | None,
        BeforeValidator(_only),
        Field(validation_alias=AliasChoices("output_dtype", "embedding_type", "embedding_types")),
    ] = None
    """'float'; 'int8' with a scale per embedding; 'ubinary' with 8 components per byte; 'binary', the bytes
    of 'ubinary' minus 128."""
    user: str | None = None
    """Accepted and not used."""


class EmbeddingItem(Documented):
    """One embedding."""

    object: Literal["embedding"]
    index: int
    """Position of the input in the request, from 0."""
    embedding: list[float] | list[int] | str
    """Components, or their bytes in base64."""
    tokens: int
    """Tokens of the text with its prompt, before truncation."""
    truncated: bool
    """True if the text was truncated at the token limit."""
    scale: float | None = None
    """Only for int8: value * scale is about the component."""


class Usage(Documented):
    """Tokens of all inputs, after truncation."""

    prompt_tokens: int
    total_tokens: int
    """The same number as `prompt_tokens`."""


class EmbeddingsResponse(Documented):
    """Embeddings in the order of the inputs."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    """Model name of the request."""
    usage: Usage


class Model(Documented):
    """A model name that the server accepts."""

    id: str
    """Name to send as `model`."""
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "koe5-onnx"
    dimensions: list[int]
    """Sizes of embeddings that a request may ask for."""


class ModelList(Documented):
    """All model names that the server accepts."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(Documented):
    """Details of an error."""

    message: str
    """Reason, and what to do."""
    type: str
    """Kind of error, one of OpenAI's types."""
    param: str | None
    """Name of the invalid field; null if the error is not about a field."""
    code: str | None
    """Code for programs; null if the type has no codes."""


class ErrorResponse(Documented):
    """Error in OpenAI's format."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 408, 413, 415, 422, 429, 500, 503)
}


def openai_routes(requests: RequestEmbedder, names: ModelNames) -> APIRouter:
    """Return the routes. "/v1" may be missing in the path of a request (see `protection.canonical`)."""
    router = APIRouter(tags=["OpenAI"], responses=ERRORS)
    contract = requests.embedder.contract
    described = {name: Model(id=name, dimensions=list(contract.dims)) for name in names.all}

    @router.post("/v1/embeddings", response_model=EmbeddingsResponse, summary="Embed texts")
    async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
        dtype = _dtype_of(body)
        inputs = requests.inputs.read(body.input, body, "input", of_model=names.prompt_of(body.model))
        encoded, headers = await requests.answer(request, inputs, body.dimensions)
        counts = zip(encoded.tokens.tolist(), encoded.truncated.tolist(), strict=True)
        ran = sum(contract.max_tokens if truncated else tokens for tokens, truncated in counts)
        answer = {
            "object": "list",
            "data": _items(encoded, dtype, as_base64="base64" in (body.encoding_format, body.output_dtype)),
            "model": body.model or names.names[0],
            "usage": {"prompt_tokens": ran, "total_tokens": ran},
        }
        content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, headers=headers, media_type="application/json")

    @router.get("/v1/models", summary="List the model names")
    async def models() -> ModelList:
        return ModelList(data=[*described.values()])

    @router.get("/v1/models/{name:path}", summary="Describe a model name")
    async def model(name: str) -> Model:
        if name not in described:
            message = f"there is no model {name[:200]!r}. GET /v1/models lists all names"
            raise Refusal(Reason.UNKNOWN_MODEL, message)
        return described[name]

    return router


def _dtype_of(body: EmbeddingsRequest) -> str:
    asked = {body.encoding_format, body.output_dtype} - {None, "float", "base64"}
    if len(asked) > 1:
        found = f"encoding_format is {body.encoding_format!r} and output_dtype is {body.output_dtype!r}"
        raise Refusal(Reason.INVALID, f"{found}: expected one type", "output_dtype")
    return next(iter(asked), None) or "float"


def _items(encoded: Encoded, dtype: str, *, as_base64: bool) -> list[dict[str, Any]]:
    vectors, scale = _vectors(encoded.embeddings, dtype)
    columns = zip(vectors, encoded.tokens.tolist(), encoded.truncated.tolist(), strict=True)
    items = [
        {
            "object": "embedding",
            "index": index,
            "embedding": str(base64.b64encode(vector), "ascii") if as_base64 else vector,
            "tokens": tokens,
            "truncated": truncated,
        }
        for index, (vector, tokens, truncated) in enumerate(columns)
    ]
    for item, one in zip(items, scale, strict=False):
        item["scale"] = one
    return items


def _vectors(
    embeddings: npt.NDArray[np.float32], dtype: str
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float32] | Sequence[float]]:
    """Convert embeddings to an output dtype; also return the scale of each row, which only int8 has."""
    if dtype == "float":
        return np.ascontiguousarray(embeddings, "<f4"), ()
    if dtype == "int8":
        return to_int8(embeddings)
    bits = to_bits(embeddings)
    # As in sentence-transformers, "ubinary" is the bytes themselves, and "binary" each byte minus 128.
    return (bits if dtype == "ubinary" else (bits ^ 128).view(np.int8)), ()
