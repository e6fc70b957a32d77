"""What the tests of the runtime share: the tiny artifact, its golden embeddings, texts of a given length."""

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
    """Texts, the name of the prompt of each, and their embeddings from PyTorch."""

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
    """A fresh one a test, as each warns once only."""
    with Embedder.open(artifact_path, threads=1) as opened:
        yield opened


@pytest.fixture
def artifact_copy(artifact_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny artifact for a test to damage."""
    return shutil.copytree(artifact_path, tmp_path / "artifact")


@pytest.fixture(scope="session")
def text_of(artifact_path: Path) -> Callable[[int], str]:
    """Makes a text that has n tokens of its own, so n + 2 with `<s>` and `</s>`."""
    word = one_token_word(artifact_path / "tokenizer.json")
    return lambda tokens: " ".join([word] * tokens)


def one_token_word(file: Path) -> str:
    """A word of the vocabulary that stays one token when it is repeated."""
    tokenizer = Tokenizer(file, max_tokens=512)
    for piece in sorted(tokenizers.Tokenizer.from_file(str(file)).get_vocab()):
        word = piece.removeprefix("▁")
        if word.isalpha() and tokenizer.encode([" ".join([word] * 50)]).full_lengths[0] == 52:
            return word
    raise AssertionError(f"{file} has no word of one token")


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python code, or a module after "-m", in a process of its own that finds koe5_onnx."""
    source = str(Path(koe5_onnx.__file__).resolve().parents[1])
    # This process' import of onnxruntime has set it; a process of its own must do so itself.
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
    """Stands before `session.run`: lets batches through one by one, or all once it is open."""

    def __init__(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[int] = []
        """Texts of each."""
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
    """Puts a gate before an Embedder's session."""
    return lambda embedder: Gate(embedder, monkeypatch)
