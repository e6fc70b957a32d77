"""A few seconds of the soak test on the tiny artifact."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

pytestmark = pytest.mark.slow
FILE = Path(__file__).with_name("soak.py")


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("soak", FILE)
    module = sys.modules["soak"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return asyncio.run(module.soak(FILE.parents[1] / "data" / "tiny-int8", seconds=6))


def test_every_request_is_answered_rightly_or_ends_with_an_error(report):
    assert report.faults == []
    assert report.answered > 100
    assert report.left > 10
    assert set(report.statuses) == {"200", "400"}


def test_the_server_stops_in_good_order(report):
    assert report.exit_code == 0
    # Each client ran until the server stopped.
    assert report.cut_off == 12


def test_memory_is_flat(report):
    assert report.growth < 0.15
