"""koe5-onnx serve: an HTTP server that clients of OpenAI and text-embeddings-inference speak to."""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path

from koe5_onnx import InputError
from koe5_onnx.cli.engine_arguments import add_engine_arguments, engine_options
from koe5_onnx.engine.machine import usable_cores

KEYS_VARIABLE = "KOE5_ONNX_API_KEYS"


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb and its arguments."""
    parser = verbs.add_parser(
        "serve",
        help="serve an artifact over HTTP, for clients of OpenAI and TEI",
        description="Serve an artifact over HTTP: POST /v1/embeddings (OpenAI), POST /embed (TEI), a page to "
        "try it at /, metrics at /metrics. Logs are JSON lines on stderr.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("artifact", metavar="DIR_OR_HUB_ID", help="an exported artifact")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one (default: 8080)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes; each opens the artifact (default: 1). Several divide the cores and share their "
        "packed weights, unless --threads or --no-share-weights is given",
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    add_engine_arguments(parser.add_argument_group("engine"), share_weights=None)
    _add_requests(parser.add_argument_group("requests"))
    _add_limits(parser.add_argument_group("limits"))


def run(args: argparse.Namespace) -> int:
    """Serve until stopped and return the exit code.

    Raises:
        Koe5Error: The artifact, the device or an option cannot be used.
        OSError: The key file cannot be read, or the address is taken.
    """
    from koe5_onnx.serve import Settings, serve

    if args.workers < 1:
        raise InputError(f"--workers is {args.workers}: expected 1 or more")
    if not 0 <= args.port <= 65535:
        raise InputError(f"--port is {args.port}: expected 0 to 65535")
    threads = max(1, usable_cores().count // args.workers) if args.threads is None else args.threads
    share_weights = args.workers > 1 if args.share_weights is None else args.share_weights
    settings = Settings(
        artifact=args.artifact,
        engine=engine_options(args, threads=threads, share_weights=share_weights),
        max_wait_ms=args.max_wait_ms,
        default_prompt_name=args.default_prompt_name,
        model_names=tuple(args.model_name),
        api_keys_sha256=hash_keys(args.api_key_file, os.environ.get(KEYS_VARIABLE, "")),
        log_texts=args.log_texts,
        otlp_endpoint=args.otlp_endpoint,
        **{name: value for name in _LIMITS if (value := getattr(args, name)) is not None},
    )
    return serve(settings, host=args.host, port=args.port, workers=args.workers, log_level=args.log_level)


def hash_keys(file: Path | None, environment: str) -> tuple[str, ...]:
    """SHA-256 of the keys in a file (one a line) and in the environment (commas between).

    Raises:
        InputError: The file holds no key: the server would be open.
        OSError: It cannot be read.
    """
    lines = [] if file is None else file.read_text(encoding="utf-8").splitlines()
    of_file = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if file is not None and not of_file:
        raise InputError(f"{file} holds no API key: expected one a line")
    keys = [*of_file, *(key.strip() for key in environment.split(",") if key.strip())]
    return tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)


def _add_requests(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model-name", action="append", default=[], metavar="NAME",
        help="another name that the model answers to; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--default-prompt-name", metavar="NAME", help="prompt of requests that name none: query or passage"
    )
    group.add_argument(
        "--max-wait-ms", type=float, default=0.0, metavar="MS",
        help="how long a batch that is not full waits for more (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--api-key-file", type=Path, metavar="FILE",
        help=f"keys, one a line, one of which requests must bring; also from {KEYS_VARIABLE}",
    )  # fmt: skip
    group.add_argument("--log-texts", action="store_true", help="put the beginning of texts into the log")
    group.add_argument("--otlp-endpoint", metavar="URL", help="send OpenTelemetry traces there (extra otel)")


_LIMITS = {
    "max_body_bytes": (int, "bytes of a request's body (default: 8 MiB)"),
    "max_pending_bytes": (int, "bytes of all bodies and answers in work, then 429 (default: 64 MiB)"),
    "max_inputs": (int, "texts of a request (default: 2048)"),
    "max_text_characters": (int, "characters of a text (default: 262144)"),
    "max_request_tokens": (int, "tokens of a request (default: 131072)"),
    "max_queue_tokens": (int, "tokens that wait, then 429 (default: 524288)"),
    "max_requests": (int, "requests in work, then 429 (default: 1024)"),
    "timeout_s": (float, "seconds until an answer (default: 300)"),
    "body_timeout_s": (float, "seconds for a client to send or take the next part (default: 30)"),
    "shutdown_s": (float, "seconds for accepted requests after SIGTERM (default: 30)"),
}


def _add_limits(group: argparse._ArgumentGroup) -> None:
    for name, (kind, words) in _LIMITS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=words)
