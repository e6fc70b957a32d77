"""Run the app under uvicorn, in one process or in several workers that each open the artifact."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from functools import partial
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

_LEAST_CONNECTIONS = 64


def serve(settings: Settings, *, host: str, port: int, workers: int = 1, log_level: str = "info") -> int:
    """Serve until SIGTERM or SIGINT, then finish the accepted requests.

    Args:
        settings: Settings of the server.
        host: Address to listen on.
        port: Port to listen on. 0 selects a free port, which the log shows.
        workers: Number of processes. Each opens the artifact.
        log_level: Lowest level that is logged.

    Returns:
        The exit code.

    Raises:
        Koe5Error: The artifact cannot be opened or the device cannot run it.
    """
    log_as_json(log_level)
    if workers > 1:
        return _serve_workers(settings, host, port, workers, log_level)
    with Embedder.open(settings.artifact, options=settings.engine) as embedder:
        return _serve_here(settings, create_app(embedder, settings), host, port)


def worker_app(settings: Settings, log_level: str) -> Any:
    """Return the app of a worker process.

    Raises:
        SystemExit: The app cannot be created. The worker logs the reason and the server stops.
    """
    log_as_json(log_level)
    try:
        return create_app(Embedder.open(settings.artifact, options=settings.engine), settings)
    except (Koe5Error, OSError) as error:
        LOGGER.error("a worker cannot start: %s", error)
        raise SystemExit(STARTUP_FAILURE) from error


def _serve_workers(settings: Settings, host: str, port: int, workers: int, log_level: str) -> int:
    with _bound(host, port) as bound, tempfile.TemporaryDirectory(prefix="koe5-metrics-") as folder:
        os.environ[MULTIPROCESS_VARIABLE] = folder
        _log_address("starting", bound, workers=workers)
        app = partial(worker_app, settings, log_level)
        config = uvicorn.Config(app, factory=True, workers=workers, **uvicorn_options(settings))
        supervisor = Multiprocess(config, [bound])
        supervisor.run()
        has_failed = any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes)
    return 1 if has_failed else 0


class _Server(uvicorn.Server):
    """uvicorn server that logs its address once it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or []:
            _log_address("listening", one, pid=os.getpid())


def _log_address(message: str, bound: socket.socket, **more: int) -> None:
    host, port, *_ = bound.getsockname()
    LOGGER.info(message, extra={"fields": {"host": host, "port": port, **more}})


def _serve_here(settings: Settings, app: Any, host: str, port: int) -> int:
    # After a graceful shutdown uvicorn raises the signal again, which would end the process with an error.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with _bound(host, port) as bound:
            server = _Server(uvicorn.Config(app, **uvicorn_options(settings)))
            server.run(sockets=[bound])
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
    return 0 if server.started else 1


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address. uvicorn listens on it once the app is ready.

    Raises:
        OSError: The address is in use or does not belong to this machine.
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
    """Return the options of uvicorn.Config, except the app and the number of workers."""
    return {
        "http": partial(
            BoundedProtocol,
            client_timeout_s=settings.body_timeout_s,
            # More connections than requests: some are idle, and requests above the limit receive a 429.
            max_connections=max(_LEAST_CONNECTIONS, 4 * settings.max_requests),
        ),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "forwarded_allow_ips": settings.forwarded_allow_ips,
        "timeout_keep_alive": settings.keep_alive_s,
        "timeout_graceful_shutdown": round(settings.shutdown_s),
    }
