"""Runs the app under uvicorn: one process, or several with an artifact each."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

import uvicorn

from koe5_onnx import Embedder
from koe5_onnx.serve.app import create_app
from koe5_onnx.serve.logs import LOGGER, log_as_json
from koe5_onnx.serve.metrics import MULTIPROCESS_VARIABLE
from koe5_onnx.serve.settings import Settings

_SETTINGS_VARIABLE = "KOE5_ONNX_SERVE_SETTINGS"
_LOG_LEVEL_VARIABLE = "KOE5_ONNX_SERVE_LOG_LEVEL"
_KEEP_ALIVE_S = 75
"""Longer than the 60 s after which common proxies drop a connection, so that they and not we close it."""


def serve(settings: Settings, *, host: str, port: int, workers: int = 1, log_level: str = "info") -> int:
    """Serve until SIGTERM or SIGINT, then finish what was accepted.

    Args:
        settings: What to serve, and how.
        host: Address to listen on.
        port: 0 takes a free one, which the log names.
        workers: Processes; each opens the artifact.
        log_level: Least level of the log.

    Returns:
        The exit code.

    Raises:
        Koe5Error: The artifact or the device cannot be used.
    """
    log_as_json(log_level)
    os.environ[_SETTINGS_VARIABLE], os.environ[_LOG_LEVEL_VARIABLE] = settings.to_json(), log_level
    if workers == 1:
        with open_embedder(settings) as embedder:
            return _serve_here(settings, create_app(embedder, settings), host, port)
    LOGGER.info("starting", extra={"fields": {"host": host, "port": port, "workers": workers}})
    with tempfile.TemporaryDirectory(prefix="koe5-metrics-") as folder:
        os.environ[MULTIPROCESS_VARIABLE] = str(Path(folder))
        uvicorn.run(
            app_of_environment_path(), factory=True, workers=workers, **_options(settings, host, port)
        )
    return 0


def open_embedder(settings: Settings) -> Embedder:
    """The artifact, ready for many threads.

    Raises:
        Koe5Error: It cannot be opened.
    """
    return Embedder.open(
        settings.artifact,
        revision=settings.revision,
        device=settings.device,
        threads=settings.threads,
        max_batch_tokens=settings.max_batch_tokens,
        kernels=settings.kernels,  # type: ignore[arg-type]
    )


def app_of_environment() -> Any:
    """The app of a worker process, by the settings in its environment."""
    settings = Settings.from_json(os.environ[_SETTINGS_VARIABLE])
    log_as_json(os.environ[_LOG_LEVEL_VARIABLE])
    return create_app(open_embedder(settings), settings)


def app_of_environment_path() -> str:
    """Where uvicorn's worker processes find the app."""
    return f"{__name__}:{app_of_environment.__name__}"


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or []:
            host, port, *_ = one.getsockname()
            LOGGER.info("listening", extra={"fields": {"host": host, "port": port, "pid": os.getpid()}})


def _serve_here(settings: Settings, app: Any, host: str, port: int) -> int:
    # uvicorn raises the signal again once it has stopped in good order: that is no fault.
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with _bound(host, port) as bound:
            server = _Server(uvicorn.Config(app, **_options(settings, host, port)))
            server.run(sockets=[bound])
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
    return 0 if server.started else 1


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address. Nobody can connect before uvicorn listens on it, when the app is ready.

    Raises:
        OSError: The address is taken or is not of this machine.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from error
    return bound


def _options(settings: Settings, host: str, port: int) -> dict[str, Any]:
    return {
        "host": host,
        "port": port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_keep_alive": _KEEP_ALIVE_S,
        "timeout_graceful_shutdown": round(settings.shutdown_s),
        # Beyond requests in work, idle connections may stand open.
        "limit_concurrency": 4 * settings.max_requests,
    }


def _ignore(_number: int, _frame: object) -> None:
    """Let uvicorn's own signal handling be the last word."""
