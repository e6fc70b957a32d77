"""Fixtures for the tests of the runtime."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tokenizers

import koe5_onnx
from koe5_onnx import Embedder, Tokenizer

DATA = Path(__file__).resolve().parents[1] / "data"


@dataclass(frozen=True)
class Golden:
    """Texts, their prompt names, and their embeddings from PyTorch."""

    texts: list[str]
    prompts: list[str | None]
    embeddings: np.ndarray


@pytest.fixture(scope="session")
def artifact_path() -> Path:
    return DATA / "tiny-int8"


@pytest.fixture(scope="session")
def golden() -> Golden:
    data = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))
    with np.load(DATA / "golden.npz") as arrays:
        return Golden(data["texts"], data["prompts"], arrays["embeddings"])


@pytest.fixture
def embedder(artifact_path: Path) -> Iterator[Embedder]:
    """Return a new Embedder per test, because an Embedder issues each kind of warning only once."""
    with Embedder.open(artifact_path, threads=1) as opened:
        yield opened


@pytest.fixture
def artifact_copy(artifact_path: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny artifact that a test may damage."""
    return shutil.copytree(artifact_path, tmp_path / "artifact")


@pytest.fixture(scope="session")
def text_of(artifact_path: Path) -> Callable[[int], str]:
    """Return a function that makes a text of n tokens, not counting `<s>` and `</s>`."""
    word = one_token_word(artifact_path / "tokenizer.json")
    return lambda tokens: " ".join([word] * tokens)


def one_token_word(file: Path) -> str:
    """Return a word of the vocabulary that remains one token when it is repeated."""
    tokenizer = Tokenizer(file, max_tokens=512)
    for piece in sorted(tokenizers.Tokenizer.from_file(str(file)).get_vocab()):
        word = piece.removeprefix("▁")
        if word.isalpha() and tokenizer.encode([" ".join([word] * 50)]).full_lengths[0] == 52:
            return word
    raise AssertionError(f"{file} has no word that is a single token")


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs Python code, or "-m" and a module, in a process with koe5_onnx."""
    source = str(Path(koe5_onnx.__file__).resolve().parents[1])
    # `import_onnxruntime` has set this variable here. A new process must set it itself.
    inherited = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}

    def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        first = [] if arguments[0] == "-m" else ["-c"]
        return subprocess.run(
            [sys.executable, *first, *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            check=False,
            env={**inherited, "PYTHONPATH": source, "PYTHONIOENCODING": "utf-8", **env},
        )

    return run


class Gate:
    """Blocks `session.run` until the test lets some batches pass (`let`) or all (`open`)."""

    def __init__(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[int] = []
        """Number of texts of each batch."""
        self.running, self.most, self._lock = 0, 0, threading.Lock()
        self.began, self._may_run = threading.Semaphore(0), threading.Semaphore(0)
        self._run = embedder.session.run
        monkeypatch.setattr(embedder.session, "run", self)

    def __call__(self, *arrays):
        self.batches.append(len(arrays[0]) if len(arrays) == 2 else len(arrays[2]) - 1)
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.began.release()
        assert self._may_run.acquire(timeout=60)
        try:
            return self._run(*arrays)
        finally:
            with self._lock:
                self.running -= 1

    async def until_one_began(self) -> None:
        assert await asyncio.to_thread(self.began.acquire, timeout=60)

    def let(self, batches: int) -> None:
        self._may_run.release(batches)

    def open(self) -> None:
        self.let(1_000_000)


@pytest.fixture
def gate_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Embedder], Gate]:
    """Return a function that blocks an Embedder's session with a gate."""
    return lambda embedder: Gate(embedder, monkeypatch)
