"""What an operator can choose, with its limits. Made by the command line; worker processes get it as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from koe5_onnx import EngineOptions, InputError


@dataclass(frozen=True)
class Settings:
    """Everything that the server can be told.

    Raises:
        InputError: A value is out of range, or two do not fit together.
    """

    artifact: str
    """Folder or Hub id of an exported artifact."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    """How the artifact is opened. A short batch may run in addition to `parallel_batches`; `overflow` is for
    requests that do not say."""
    max_wait_ms: float = 0.0
    """How long a batch that is not full waits for more; measured in benchmarks/NOTES.md."""
    default_prompt_name: str | None = None
    """Prompt of requests that name none."""
    model_names: tuple[str, ...] = ()
    """Names that the model answers to, in addition to its repository."""

    max_body_bytes: int = 8 * 2**20
    max_pending_bytes: int = 64 * 2**20
    """Of the bodies and the large answers of all requests in work; what Python makes of a body takes up to 6
    times as much."""
    max_inputs: int = 2048
    """Texts of one request; as many as OpenAI takes.
    Source: https://platform.openai.com/docs/api-reference/embeddings/create"""
    max_text_characters: int = 262_144
    """Of one text, or ids of one; tokenizing takes about 330 bytes for each."""
    max_request_tokens: int = 131_072
    max_queue_tokens: int = 524_288
    max_requests: int = 1024
    """Requests in the house at one time, reading, waiting and running."""
    timeout_s: float = 300.0
    """From the end of the request's body to its answer."""
    body_timeout_s: float = 30.0
    """For a client to send the head or the body of a request, or to take the next 64 KiB of an answer."""
    shutdown_s: float = 30.0
    """How long accepted requests may take after SIGTERM."""

    api_keys_sha256: tuple[str, ...] = ()
    """Hashes of the keys, so that no settings dump or log holds one; none for an open server."""
    log_texts: bool = False
    otlp_endpoint: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "max_body_bytes", "max_inputs", "max_text_characters", "max_request_tokens",
            "max_queue_tokens", "max_requests", "max_pending_bytes", "timeout_s", "body_timeout_s",
            "shutdown_s",
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}: expected more than 0")
        if self.max_wait_ms < 0:
            raise InputError(f"max_wait_ms is {self.max_wait_ms}: expected 0 or more")
        if self.max_request_tokens > self.max_queue_tokens:
            raise InputError(
                f"max_request_tokens is {self.max_request_tokens}, max_queue_tokens {self.max_queue_tokens}: "
                "expected a queue that holds a whole request"
            )

    def to_json(self) -> str:
        """For the environment of a worker process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """What `to_json` gave."""
        found: Mapping[str, Any] = json.loads(text)
        given: Any = {
            name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
        }
        return cls(**given | {"engine": EngineOptions(**given["engine"])})
