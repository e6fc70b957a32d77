"""Runs the app under uvicorn: one process, or several with an artifact each."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from koe5_onnx import Embedder, Koe5Error
from koe5_onnx.serve.app import create_app
from koe5_onnx.serve.logs import LOGGER, log_as_json
from koe5_onnx.serve.metrics import MULTIPROCESS_VARIABLE
from koe5_onnx.serve.protocol import BoundedProtocol
from koe5_onnx.serve.settings import Settings

_SETTINGS_VARIABLE = "KOE5_ONNX_SERVE_SETTINGS"
_LOG_LEVEL_VARIABLE = "KOE5_ONNX_SERVE_LOG_LEVEL"
_LEAST_CONNECTIONS = 64
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
    if workers > 1:
        os.environ[_SETTINGS_VARIABLE], os.environ[_LOG_LEVEL_VARIABLE] = settings.to_json(), log_level
        return _serve_workers(settings, host, port, workers)
    with _open(settings) as embedder:
        return _serve_here(settings, create_app(embedder, settings), host, port)


def _open(settings: Settings) -> Embedder:
    return Embedder.open(settings.artifact, options=settings.engine)


def app_of_environment() -> Any:
    """The app of a worker process, by the settings in its environment.

    Raises:
        SystemExit: It cannot be made; the log says why, and the process that watches the workers gives up.
    """
    settings = Settings.from_json(os.environ[_SETTINGS_VARIABLE])
    log_as_json(os.environ[_LOG_LEVEL_VARIABLE])
    try:
        return create_app(_open(settings), settings)
    except (Koe5Error, OSError) as error:
        LOGGER.error("a worker cannot start: %s", error)
        raise SystemExit(STARTUP_FAILURE) from error


def _serve_workers(settings: Settings, host: str, port: int, workers: int) -> int:
    with _bound(host, port) as bound, tempfile.TemporaryDirectory(prefix="koe5-metrics-") as folder:
        os.environ[MULTIPROCESS_VARIABLE] = str(Path(folder))
        _log_address("starting", bound, workers=workers)
        app = f"{__name__}:{app_of_environment.__name__}"
        config = uvicorn.Config(app, factory=True, workers=workers, **uvicorn_options(settings))
        supervisor = Multiprocess(config, [bound])
        supervisor.run()
        has_failed = any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes)
    return 1 if has_failed else 0


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or []:
            _log_address("listening", one, pid=os.getpid())


def _log_address(message: str, bound: socket.socket, **more: int) -> None:
    host, port, *_ = bound.getsockname()
    LOGGER.info(message, extra={"fields": {"host": host, "port": port, **more}})


def _serve_here(settings: Settings, app: Any, host: str, port: int) -> int:
    # uvicorn raises the signal again once it has stopped in good order: that is no fault.
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with _bound(host, port) as bound:
            server = _Server(uvicorn.Config(app, **uvicorn_options(settings)))
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


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """Return the options of uvicorn, in addition to the app and the address."""
    return {
        "http": partial(
            BoundedProtocol,
            client_timeout_s=settings.body_timeout_s,
            # Beyond requests in work, idle connections may stand open; requests beyond the limit get a 429.
            max_connections=max(_LEAST_CONNECTIONS, 4 * settings.max_requests),
        ),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_keep_alive": _KEEP_ALIVE_S,
        "timeout_graceful_shutdown": round(settings.shutdown_s),
    }


def _ignore(_number: int, _frame: object) -> None:
    """Let uvicorn's own signal handling be the last word."""
