"""Settings of the server, which the command line creates."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from koe5_onnx import EngineOptions, InputError


@dataclass(frozen=True)
class Settings:
    """Settings of the server.

    Raises:
        InputError: A number is out of range, or `root_path` is not a path.
    """

    artifact: str
    """Folder or Hub ID of an exported artifact."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    """Options of the engine. One short batch may run in addition to `parallel_batches`. The field `truncate`
    of a request determines whether longer texts are rejected; `overflow` is its default."""
    max_wait_ms: float = 0.0
    """Time that a batch with free slots waits for more texts; measured in benchmarks/decisions/server.md."""
    default_prompt_name: str | None = None
    """Prompt name of requests without one; None for the default of the contract."""
    strict: bool = False
    """True to reject requests with fields that have no effect, instead of naming these in the response."""
    model_names: tuple[str, ...] = ()
    """Names that clients may use for the model, in addition to its repository."""

    cache_entries: int = 0
    """Number of embeddings that each process keeps for repeated texts; 0 keeps none."""

    max_body_bytes: int = 8 * 2**20
    """Maximum size of a request's body."""
    max_pending_bytes: int = 64 * 2**20
    """Maximum total size of the bodies and large responses of all open requests. A parsed body takes up to 6
    times its size in Python."""
    max_inputs: int = 2048
    """Maximum number of texts per request, the same as OpenAI's.
    Source: https://platform.openai.com/docs/api-reference/embeddings/create"""
    max_text_characters: int = 262_144
    """Maximum number of characters, or of token IDs, per text. Up to this length, tokenizing takes about 330
    bytes per character."""
    max_request_tokens: int = 300_000
    """Maximum number of tokens per request, after truncation, the same as OpenAI's."""
    max_queue_tokens: int = 524_288
    """Maximum number of queued tokens; requests beyond it are rejected. A request has at most an eighth of
    them in the queue at a time, and the rest of its tokens follow in pieces."""
    max_requests: int = 1024
    """Maximum number of open requests: being received, queued or running."""
    timeout_s: float = 300.0
    """Maximum time from the end of a request's body to its result."""
    body_timeout_s: float = 30.0
    """Maximum time for a client to send the headers or the body of a request, or to read the next 64 KiB of a
    response."""
    keep_alive_s: float = 75.0
    """Maximum time that a connection may be idle, longer than the 60 s of common proxies, so that the proxy
    closes it first."""
    shutdown_s: float = 30.0
    """Maximum time to finish accepted requests after SIGTERM."""

    root_path: str = ""
    """Prefix of the URL under which a proxy publishes the server, such as "/embeddings"."""
    forwarded_allow_ips: str = "127.0.0.1"
    """Addresses of proxies, separated by commas; "*" for all. Their header X-Forwarded-For sets the client's
    address in the log."""
    cors_allow_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the server, such as "https://example.com"; "*" for all."""
    api_keys_sha256: tuple[str, ...] = ()
    """SHA-256 hashes of the API keys, so that no settings dump or log contains a key; empty for no
    authentication."""
    log_texts: bool = False
    """True to log the beginning of some texts of each request."""
    otlp_endpoint: str | None = None
    """Endpoint for OpenTelemetry spans; None for no tracing."""

    def __post_init__(self) -> None:
        may_be_zero = ("max_wait_ms", "cache_entries")
        numbers = {name: value for name, value in vars(self).items() if type(value) in (int, float)}
        for name, value in numbers.items():
            if value < 0 or (value == 0 and name not in may_be_zero):
                expected = "0 or more" if name in may_be_zero else "more than 0"
                raise InputError(f"{name} is {value}: expected {expected}")
        if self.root_path and not re.fullmatch("(/[^/]+)+", self.root_path):
            raise InputError(f"root_path is {self.root_path!r}: expected a path like '/embeddings'")
