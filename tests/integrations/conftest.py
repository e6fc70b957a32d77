"""What the tests of the adapters share: the tiny artifact, and no way to the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from shortened import allow

from koe5_onnx import Embedder

# Read when the libraries are first imported: no test may reach the network, for data or to report its use.
# And Haystack 3 loads saved components of other packages only where somebody trusts these.
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
    """The artifact, of a model that was trained to be shortened."""
    return allow(ARTIFACT, tmp_path_factory.mktemp("allowed") / "artifact")


@pytest.fixture(scope="session")
def short(allowed: Path) -> Iterator[Embedder]:
    with Embedder.open(allowed, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Any two of them have embeddings that differ, and so do those of one with different prompts."""
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
