"""What happens on the stand-in for a GPU (standin/standin.h), and tiny artifacts to run there.

`make gpu` builds the stand-in, makes the artifacts and loads both into an environment with ONNX
Runtime's GPU wheel; elsewhere these tests are skipped.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = os.environ.get("STANDIN_ARTIFACTS")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip them all where the stand-in is not loaded."""
    if FOLDER is None:
        reason = "the stand-in for a GPU is loaded by `make gpu`"
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True)
class Seen:
    """What happened, by name: how often, and in how many bytes."""

    times: dict[str, int]
    bytes: dict[str, int]

    def count(self, *starts: str) -> int:
        """How often anything happened whose name begins so."""
        return sum(times for name, times in self.times.items() if name.startswith(starts))

    def named(self, part: str) -> int:
        """How often anything happened whose name has this part."""
        return sum(times for name, times in self.times.items() if part in name)


@pytest.fixture
def seen() -> Callable[[], Seen]:
    """What happened since it was asked last."""
    library = ctypes.CDLL("libcuda.so.1")
    library.standin_events.restype = ctypes.c_char_p

    def take() -> Seen:
        lines = library.standin_events().decode().splitlines()
        rows = [line.split(" ", 2) for line in lines]
        return Seen({row[2]: int(row[0]) for row in rows}, {row[2]: int(row[1]) for row in rows})

    take()
    return take


@pytest.fixture
def fp16() -> Path:
    return Path(str(FOLDER)) / "fp16"


@pytest.fixture
def fp32() -> Path:
    return Path(str(FOLDER)) / "fp32"
