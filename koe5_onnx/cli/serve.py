"""koe5-onnx serve: an HTTP server with the APIs of OpenAI and text-embeddings-inference."""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path

from koe5_onnx import InputError
from koe5_onnx.cli.engine_arguments import add_engine_arguments, engine_options
from koe5_onnx.engine.machine import usable_cores
from koe5_onnx.text.encoding import marked, without_mark

KEYS_VARIABLE = "KOE5_ONNX_API_KEYS"


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its arguments."""
    parser = verbs.add_parser(
        "serve",
        help="serve an artifact over HTTP with the APIs of OpenAI and TEI",
        description="Serve an artifact over HTTP: POST /v1/embeddings (OpenAI), POST /embed (TEI), a test "
        "page at / and metrics at /metrics. Logs are JSON lines on stderr.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("artifact", metavar="DIR_OR_HUB_ID", help="an exported artifact")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8080, help="port; 0 selects a free one (default: 8080)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="number of processes, which each open the artifact (default: 1). Several processes divide the "
        "cores unless --threads is given, and share packed weights unless --no-share-weights is given",
    )
    parser.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="lowest level that is logged (default: info)",
    )
    add_engine_arguments(parser.add_argument_group("engine"), share_weights=None)
    _add_requests(parser.add_argument_group("requests"))
    _add_limits(parser.add_argument_group("limits"))


def run(args: argparse.Namespace) -> int:
    """Serve until stopped and return the exit code.

    With several workers, an artifact that cannot be opened is logged, and the exit code is 1.

    Raises:
        Koe5Error: The artifact or an option is invalid, or the device cannot run the artifact.
        OSError: The key file cannot be read, or the address is in use.
    """
    from koe5_onnx.serve import Settings, serve

    if args.workers < 1:
        raise InputError(f"--workers is {args.workers}: expected 1 or more")
    if not 0 <= args.port <= 65535:
        raise InputError(f"--port is {args.port}: expected 0 to 65535")
    threads = args.threads
    if threads is None and args.workers > 1:
        threads = max(1, usable_cores().count // args.workers // max(1, args.parallel_batches))
    share_weights = args.workers > 1 if args.share_weights is None else args.share_weights
    settings = Settings(
        artifact=args.artifact,
        engine=engine_options(args, threads=threads, share_weights=share_weights),
        max_wait_ms=args.max_wait_ms,
        default_prompt_name=args.default_prompt_name,
        strict=args.strict,
        cache_entries=args.cache_entries,
        model_names=tuple(args.model_name),
        root_path=args.root_path.rstrip("/"),
        forwarded_allow_ips=args.forwarded_allow_ips,
        cors_allow_origins=tuple(args.cors_allow_origin),
        api_keys_sha256=hash_keys(args.api_key_file, os.environ.get(KEYS_VARIABLE, "")),
        log_texts=args.log_texts,
        otlp_endpoint=args.otlp_endpoint,
        **{name: value for name in _LIMITS if (value := getattr(args, name)) is not None},
    )
    return serve(settings, host=args.host, port=args.port, workers=args.workers, log_level=args.log_level)


def hash_keys(file: Path | None, environment: str) -> tuple[str, ...]:
    """Return the SHA-256 hashes of the keys in a file (one per line) and in a comma-separated string.

    Raises:
        InputError: The file has no key, or its text is neither UTF-8 nor UTF-16.
        OSError: The file cannot be read.
    """
    lines = [] if file is None else _decoded(file).splitlines()
    of_file = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if file is not None and not of_file:
        raise InputError(f"{file} has no API key: expected one per line")
    keys = [*of_file, *(key.strip() for key in environment.split(",") if key.strip())]
    return tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)


def _decoded(file: Path) -> str:
    """Decode a file in UTF-8 or, as PowerShell writes it, in UTF-16, and remove the byte order mark."""
    data = file.read_bytes()
    codec = marked(data) or "utf-8"
    try:
        return without_mark(data, codec).decode(codec)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error}). Save it as UTF-8") from error


def _add_requests(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model-name", action="append", default=[], metavar="NAME",
        help="additional name that clients may use for the model; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--default-prompt-name", metavar="NAME", help="prompt name of requests without one: query or passage"
    )
    group.add_argument(
        "--strict", action="store_true",
        help="reject requests with fields that have no effect, such as normalize: false; without it, the "
        "response header x-ignored-fields names such fields",
    )  # fmt: skip
    group.add_argument(
        "--max-wait-ms", type=float, default=0.0, metavar="MS",
        help="milliseconds that a batch with free slots waits for more texts (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--cache-entries", type=int, default=0, metavar="N",
        help="number of embeddings that each process keeps for repeated texts (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--api-key-file", type=Path, metavar="FILE",
        help=f"file with the accepted API keys, one per line; {KEYS_VARIABLE} adds more, comma-separated",
    )  # fmt: skip
    group.add_argument(
        "--cors-allow-origin", action="append", default=[], metavar="ORIGIN",
        help="origin of web pages that may call the server, such as https://example.com; * for all; may be "
        "repeated",
    )  # fmt: skip
    group.add_argument(
        "--root-path", default="", metavar="PATH",
        help="prefix of the URL under which a proxy publishes the server; the proxy may keep or remove it",
    )  # fmt: skip
    group.add_argument(
        "--forwarded-allow-ips", default="127.0.0.1", metavar="IPS",
        help="proxies whose X-Forwarded-For sets the client's address in the log, comma-separated; * for all "
        "(default: 127.0.0.1)",
    )  # fmt: skip
    group.add_argument("--log-texts", action="store_true", help="log the beginning of texts")
    group.add_argument(
        "--otlp-endpoint", metavar="URL", help="send OpenTelemetry traces to this URL (extra otel)"
    )


_LIMITS = {
    "max_body_bytes": (int, "maximum bytes per request body (default: 8 MiB)"),
    "max_pending_bytes": (
        int,
        "maximum bytes of the bodies and large responses of all open requests, beyond which the server "
        "responds with 429 (default: 64 MiB)",
    ),
    "max_inputs": (int, "maximum texts per request (default: 2048)"),
    "max_text_characters": (int, "maximum characters per text (default: 262144)"),
    "max_request_tokens": (int, "maximum tokens per request, after truncation (default: 300000)"),
    "max_queue_tokens": (
        int,
        "maximum queued tokens, beyond which the server responds with 429 (default: 524288)",
    ),
    "max_requests": (int, "maximum open requests, beyond which the server responds with 429 (default: 1024)"),
    "timeout_s": (float, "maximum seconds until the result of a request (default: 300)"),
    "body_timeout_s": (
        float,
        "maximum seconds for a client to send the headers or the body of a request, or to read the next "
        "64 KiB of a response (default: 30)",
    ),
    "keep_alive_s": (float, "maximum seconds that a connection may be idle (default: 75)"),
    "shutdown_s": (float, "maximum seconds to finish accepted requests after SIGTERM (default: 30)"),
}


def _add_limits(group: argparse._ArgumentGroup) -> None:
    for name, (kind, words) in _LIMITS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=words)
