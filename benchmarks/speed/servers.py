"""Servers as processes on the loopback interface: this project's server, and infinity."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from benchmarks.contenders.process import ContenderError, cpu_seconds_of, environment_of
from benchmarks.contenders.registry import OWN, python_of
from koe5_onnx.engine.machine import usable_cores

PEERS = ("infinity",)
_START_S = 300.0


class Server:
    """A server that runs inside a `with` block.

    Args:
        command: Command line; "{port}" is replaced.
        environment: Name of the Python environment in which the command runs (see registry.py).
        model: Model name that clients send.
        path: Path of the route that is compatible with OpenAI.
    """

    def __init__(
        self, command: Sequence[str], environment: str, model: str, path: str = "/v1/embeddings"
    ) -> None:
        self.model, self.path = model, path
        self.host, self.port, self.url = "127.0.0.1", 0, ""
        self.dim = 0
        """Embedding dimension; known after the first call of `embed`."""
        self._command, self._environment = command, environment

    def __enter__(self) -> Self:
        self.port = _free_port()
        self._log = tempfile.TemporaryFile()
        self.url = f"http://{self.host}:{self.port}"
        self._process = subprocess.Popen(
            [part.replace("{port}", str(self.port)) for part in self._command],
            stdout=self._log,
            stderr=self._log,
            env=environment_of(self._environment) | {"OMP_NUM_THREADS": str(usable_cores().count)},
        )
        self._wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the embeddings, float32[n, dim], of texts that include prompts, from a single request."""
        body = {"input": list(texts), "model": self.model, "encoding_format": "base64"}
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.url}{self.path}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310 - loopback
            data = json.load(answer)["data"]
        found = np.stack([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in data])
        self.dim = found.shape[1]
        return found

    def metric(self, name: str) -> float:
        """Return the value of the first Prometheus line that starts with `name`, of this project's server."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:  # noqa: S310 - loopback
            lines: list[str] = answer.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(name)).split()[-1])

    def cpu_seconds(self) -> float:
        """Return the CPU time of all threads since the server started."""
        return cpu_seconds_of(self._process.pid)

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):  # noqa: S310 - loopback
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.05)
        self._process.kill()
        self._log.seek(0)
        words = self._log.read().decode("utf-8", "replace")[-1500:]
        raise ContenderError(f"{self._command[0]} did not start:\n{words}")


def ours(artifact: Path, wait_ms: float = 0.0, cache_entries: int = 0) -> Server:
    """Return this project's server."""
    command = [sys.executable, "-m", "koe5_onnx.cli", "serve", str(artifact), "--port", "{port}"]
    options = ["--max-wait-ms", str(wait_ms), "--cache-entries", str(cache_entries), "--log-level", "warning"]
    return Server([*command, *options], OWN, "text-embeddings-inference")


def peer(name: str, checkpoint: Path) -> Server:
    """Return the server of another project (infinity), which runs the checkpoint in fp32 with PyTorch.

    Source: https://michaelfeil.eu/infinity/latest/cli_v2/

    Raises:
        InputError: The server's Python environment is missing.
    """
    command = [str(python_of(name).with_name("infinity_emb")), "v2", "--model-id", str(checkpoint.resolve())]
    options = ["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--url-prefix", "/v1"]
    names = [
        "--served-model-name",
        "peer",
        "--no-bettertransformer",
        "--no-model-warmup",
        "--port",
        "{port}",
        "--log-level",
        "error",
    ]
    return Server([*command, *options, *names], name, "peer")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
