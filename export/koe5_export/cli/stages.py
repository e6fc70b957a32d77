"""Progress of the stages of an export: a bar per stage on a terminal, elsewhere lines with durations."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_STAGES: Mapping[str, tuple[str, str]] = {
    "reference": ("PyTorch reference", "tokens"),
    "layers": ("writing layers", "layers"),
    "calibrate": ("calibrating and writing layers", "layers"),
    "trace": ("tracing with Optimum", ""),
    "import": ("rewriting the graph", ""),
    "hash": ("SHA-256 of checkpoint and artifact", "bytes"),
    "measure": ("measuring the padded graph", "tokens"),
    "measure_packed": ("measuring the graph without padding", "tokens"),
}
"""Name of a stage to what it does and the unit of its parts; "" if it is a single part."""
_LINE_SECONDS = 20.0


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Return a `koe5_export.progress.Progress` that writes to stderr."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    bars = _Bars()
    try:
        yield bars
    finally:
        bars.close()


class Lines:
    """Writes a line when a stage starts and one when it ends; in between one every 20 seconds.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = self._last = clock()
        self._running = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Write a line if one is due."""
        words, unit = _STAGES[stage]
        now = self._clock()
        if stage != self._running:
            self._running, self._start, self._last = stage, now, now
            self._write(f"{words}: {_counted(unit, total)}" if unit else f"{words} ...")
        if done == total:
            self._running = ""
            self._write(f"{words}: done in {duration(now - self._start)}")
        elif done and now - self._last >= _LINE_SECONDS:
            self._last = now
            left = duration((now - self._start) * (total - done) / done)
            self._write(f"{words}: {_counted(unit, done, total)}, about {left} left")

    def _write(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class _Bars:
    """Draws a bar per stage and leaves it, with its duration, when the stage ends."""

    def __init__(self) -> None:
        self._running = ""
        self._bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        # A dependency of huggingface_hub. Its import is slow, and only a terminal needs it.
        from huggingface_hub.utils import tqdm

        if stage != self._running:
            self.close()
            words, unit = _STAGES[stage]
            self._running = stage
            self._bar = tqdm(
                total=total, desc=words, unit=f" {unit}", unit_scale=unit == "bytes", file=sys.stderr
            )
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def close(self) -> None:
        """Leave the bar of the running stage as it is."""
        if self._bar is not None:
            self._bar.close()
        self._running, self._bar = "", None


def _counted(unit: str, *parts: int) -> str:
    """Return "100 of 250 tokens"; bytes as megabytes."""
    numbers = [f"{count / 1e6:,.1f}" if unit == "bytes" else f"{count:,}" for count in parts]
    return f"{' of '.join(numbers)} {'MB' if unit == 'bytes' else unit}"


def duration(seconds: float) -> str:
    """Return seconds in words: "8 s", "2 min 05 s"."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02} s"
