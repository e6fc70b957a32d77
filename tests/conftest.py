"""What all tests share: no network, and cache folders that are not the user's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# No test may reach the network; huggingface_hub reads this when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache folder for all tests and the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KOE5_ONNX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A test's own cache folder, not yet made."""
    monkeypatch.setenv("KOE5_ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
