"""Fixtures that run servers in a thread of this process, with settings that the test chooses."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from koe5_onnx import Embedder, TruncationWarning
from koe5_onnx.serve import Settings, create_app
from koe5_onnx.serve.server import uvicorn_options

ARTIFACT = Path(__file__).resolve().parents[1] / "data" / "tiny-int8"
Serving = Callable[..., contextlib.AbstractContextManager[httpx.Client]]


@pytest.fixture(scope="session")
def artifact() -> Path:
    return ARTIFACT


@pytest.fixture(scope="session")
def offline() -> Iterator[Embedder]:
    with Embedder.open(ARTIFACT, threads=1) as opened:
        with pytest.warns(TruncationWarning):  # an Embedder warns only once
            opened.encode(["가 " * 600])
        yield opened


@contextlib.contextmanager
def running(app: object, settings: Settings) -> Iterator[httpx.Client]:
    """Serve an app on a free port in a thread, and yield a client for it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, **uvicorn_options(settings)))
    listening = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        port = listening.getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="session")
def serving() -> Serving:
    """Return a context manager that serves the tiny artifact, or another one, with the given settings."""

    @contextlib.contextmanager
    def start(artifact: Path = ARTIFACT, **settings: object) -> Iterator[httpx.Client]:
        with Embedder.open(artifact, options=settings.get("engine"), threads=1) as embedder:
            chosen = Settings(artifact=str(artifact), **settings)
            with running(create_app(embedder, chosen), chosen) as client:
                yield client

    return start


@pytest.fixture(scope="session")
def client(serving: Serving) -> Iterator[httpx.Client]:
    """Return a client of a server with default settings, shared by tests that do not change it."""
    with serving() as found:
        yield found
