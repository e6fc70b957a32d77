"""Errors that the server returns on purpose, in the format of OpenAI or of TEI.

Sources: https://platform.openai.com/docs/guides/error-codes,
https://github.com/huggingface/text-embeddings-inference/blob/main/docs/openapi.json
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, unique
from typing import Any

import orjson
from fastapi import Response


@unique
class Reason(Enum):
    """A kind of error: status, type and code in OpenAI's API, then status and type in TEI's."""

    INVALID = 400, "invalid_request_error", None, 422, "Validation"
    EMPTY = 400, "invalid_request_error", None, 400, "Empty"
    TOO_MANY_INPUTS = 400, "invalid_request_error", "too_many_inputs", 413, "Validation"
    TOO_MANY_TOKENS = 400, "invalid_request_error", "context_length_exceeded", 413, "Validation"
    BODY_TOO_LARGE = 413, "invalid_request_error", "body_too_large", 413, "Validation"
    BODY_TOO_SLOW = 408, "invalid_request_error", "body_too_slow", 408, "Validation"
    ENCODED = 415, "invalid_request_error", "unsupported_encoding", 415, "Validation"
    NO_KEY = 401, "invalid_request_error", "invalid_api_key", 401, "Unauthorized"
    UNKNOWN_MODEL = 404, "invalid_request_error", "model_not_found", 404, "Validation"
    UNKNOWN_ROUTE = 404, "invalid_request_error", "unknown_url", 404, "Validation"
    WRONG_METHOD = 405, "invalid_request_error", "method_not_supported", 405, "Validation"
    OVERLOADED = 429, "rate_limit_exceeded", "overloaded", 429, "Overloaded"
    TIMEOUT = 503, "server_error", "timeout", 503, "Overloaded"
    STOPPING = 503, "server_error", "stopping", 503, "Unhealthy"
    UNHEALTHY = 503, "server_error", "unhealthy", 503, "Unhealthy"
    BACKEND = 500, "server_error", "inference_failed", 424, "Backend"


@dataclass(eq=False)
class Refusal(Exception):  # noqa: N818 - an HTTP response, not a failure of the server
    """Exception that ends a request with an error response in the format of its API."""

    reason: Reason
    message: str
    """Message for the client: what was found, what was expected, what to do."""
    param: str | None = None
    """Name of the invalid field of the request."""
    retry_after_s: float | None = None
    """Value of the header retry-after, in seconds; None for no header."""
    allow: str | None = None
    """Value of the header allow, for an unsupported method."""

    def __str__(self) -> str:
        return self.message

    @property
    def code(self) -> str:
        """OpenAI's code for the reason, or the type if it has no code."""
        _, openai_type, code, _, _ = self.reason.value
        return str(code or openai_type)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        retry_after = None if self.retry_after_s is None else str(max(1, math.ceil(self.retry_after_s)))
        authenticate = "Bearer" if self.reason is Reason.NO_KEY else None
        found = {"retry-after": retry_after, "allow": self.allow, "www-authenticate": authenticate}
        return {name: value for name, value in found.items() if value is not None}

    def response(self, path: str) -> Response:
        """Return the error response in the format of the API of `path`."""
        status, openai_type, code, tei_status, tei_type = self.reason.value
        error = {"message": self.message, "type": openai_type, "param": self.param, "code": code}
        body: dict[str, Any] = {"error": error}
        if not path.startswith("/v1/"):
            status, body = tei_status, {"error": self.message, "error_type": tei_type}
        return Response(orjson.dumps(body), status, self.headers, media_type="application/json")
