"""Errors that the server returns on purpose, in the format of OpenAI or of TEI.

Sources: https://platform.openai.com/docs/guides/error-codes,
https://github.com/huggingface/text-embeddings-inference/blob/main/docs/openapi.json
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Response


@dataclass(frozen=True)
class Reason:
    """A kind of error, with its status and type in both APIs."""

    openai_status: int
    openai_type: str
    openai_code: str | None
    tei_status: int
    tei_type: str


INVALID = Reason(400, "invalid_request_error", None, 422, "Validation")
EMPTY = Reason(400, "invalid_request_error", None, 400, "Empty")
TOO_MANY_INPUTS = Reason(400, "invalid_request_error", "too_many_inputs", 413, "Validation")
TOO_MANY_TOKENS = Reason(400, "invalid_request_error", "context_length_exceeded", 413, "Validation")
BODY_TOO_LARGE = Reason(413, "invalid_request_error", "body_too_large", 413, "Validation")
BODY_TOO_SLOW = Reason(408, "invalid_request_error", "body_too_slow", 408, "Validation")
ENCODED = Reason(415, "invalid_request_error", "unsupported_encoding", 415, "Validation")
NO_KEY = Reason(401, "invalid_request_error", "invalid_api_key", 401, "Unauthorized")
UNKNOWN_MODEL = Reason(404, "invalid_request_error", "model_not_found", 404, "Validation")
UNKNOWN_ROUTE = Reason(404, "invalid_request_error", "unknown_url", 404, "Validation")
WRONG_METHOD = Reason(405, "invalid_request_error", "method_not_supported", 405, "Validation")
OVERLOADED = Reason(429, "rate_limit_exceeded", "overloaded", 429, "Overloaded")
TIMEOUT = Reason(503, "server_error", "timeout", 503, "Overloaded")
STOPPING = Reason(503, "server_error", "stopping", 503, "Unhealthy")
UNHEALTHY = Reason(503, "server_error", "unhealthy", 503, "Unhealthy")
BACKEND = Reason(500, "server_error", "inference_failed", 424, "Backend")


class Refusal(Exception):  # noqa: N818 - an HTTP response, not a failure of the server
    """Exception that ends a request with an error response in the format of its API.

    Args:
        reason: The kind of error.
        message: Message for the client: what was found, what was expected, what to do.
        param: Name of the invalid field of the request.
        retry_after_s: Value of the header retry-after, in seconds; None for no header.
        allow: Value of the header allow, for an unsupported method.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason, self.message, self.param = reason, message, param
        self.headers: dict[str, str] = {}
        if retry_after_s is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
        if allow is not None:
            self.headers["allow"] = allow
        if reason is NO_KEY:
            self.headers["www-authenticate"] = "Bearer"

    def response(self, path: str) -> Response:
        """Return the error response in the format of the API of `path`."""
        reason = self.reason
        if is_openai(path):
            status, body = reason.openai_status, self._openai_body()
        else:
            status, body = reason.tei_status, {"error": self.message, "error_type": reason.tei_type}
        return Response(orjson.dumps(body), status, self.headers, media_type="application/json")

    def _openai_body(self) -> dict[str, Any]:
        error = {
            "message": self.message,
            "type": self.reason.openai_type,
            "param": self.param,
            "code": self.reason.openai_code,
        }
        return {"error": error}


def is_openai(path: str) -> bool:
    """Return True if `path` belongs to OpenAI's API."""
    return path.startswith("/v1/") or path in ("/embeddings", "/models")
