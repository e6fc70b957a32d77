"""Events of the simulated CUDA libraries (standin/standin.h), and tiny artifacts to run on them.

`make gpu` builds the simulated libraries, exports the artifacts, and runs these tests in an environment with
ONNX Runtime's GPU wheel. Otherwise, the tests are skipped.
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
    """Skip the tests of this folder if there are no simulated libraries."""
    if FOLDER is None:
        reason = "requires the simulated CUDA libraries. Run make gpu"
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True)
class Seen:
    """Numbers of events, and of the bytes that they copied or allocated, by event name."""

    times: dict[str, int]
    bytes: dict[str, int]

    def count(self, *starts: str) -> int:
        """Return the number of events whose name has one of these prefixes."""
        return sum(times for name, times in self.times.items() if name.startswith(starts))

    def named(self, part: str) -> int:
        """Return the number of events whose name contains this part."""
        return sum(times for name, times in self.times.items() if part in name)


@pytest.fixture
def seen() -> Callable[[], Seen]:
    """Return a function that returns the events since its last call."""
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
