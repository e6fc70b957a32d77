"""Fixtures of the adapters' tests: the tiny artifact, texts and their embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from shortened import allow

from koe5_onnx import Embedder

# The libraries read these variables when they are first imported. Telemetry is disabled. Haystack 3 loads
# saved components of other packages only if the variable lists them.
os.environ |= {
    "ANONYMIZED_TELEMETRY": "False",
    "HAYSTACK_DESERIALIZATION_ALLOWLIST": "koe5_onnx.integrations.haystack",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
}

ARTIFACT = Path(__file__).resolve().parents[1] / "data" / "tiny-int8"


@pytest.fixture(scope="session")
def artifact_path() -> Path:
    return ARTIFACT


@pytest.fixture(scope="session")
def embedder() -> Iterator[Embedder]:
    with Embedder.open(ARTIFACT, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the artifact with Matryoshka dimensions."""
    return allow(ARTIFACT, tmp_path_factory.mktemp("allowed") / "artifact")


@pytest.fixture(scope="session")
def short(allowed: Path) -> Iterator[Embedder]:
    with Embedder.open(allowed, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Return texts whose embeddings all differ, also between prompts."""
    return [
        "대한민국의 수도는 어디인가요?",
        "서울은 대한민국의 수도이다.",
        "고래는 포유류이다.",
        "",
        "The quick fox",
    ]


@pytest.fixture(scope="session")
def queries(embedder: Embedder, texts: list[str]) -> np.ndarray:
    return embedder.encode_queries(texts)


@pytest.fixture(scope="session")
def passages(embedder: Embedder, texts: list[str]) -> np.ndarray:
    return embedder.encode_passages(texts)
