"""Progress of an export: one bar per stage on a terminal, otherwise lines with durations."""

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
    "import": ("converting the graph", ""),
    "hash": ("hashing checkpoint and artifact", "bytes"),
    "measure": ("measuring the padded graph", "tokens"),
    "measure_packed": ("measuring the packed graph", "tokens"),
}
"""Description of each stage, and the unit of its progress; "" if the stage has a single step."""
_LINE_SECONDS = 20.0


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a progress callback (`koe5_export.progress.Progress`) that writes to stderr."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    bars = _Bars()
    try:
        yield bars
    finally:
        bars.close()


class Lines:
    """Progress as lines of text: when a stage starts, about every 20 seconds, and when the stage ends.

    Args:
        clock: Function that returns a monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = self._last = clock()
        self._running = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Write a line if the stage starts or ends, or 20 seconds have passed since the last line."""
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
    """Progress as one bar per stage. When a stage ends, its bar stays visible and shows the duration."""

    def __init__(self) -> None:
        self._running = ""
        self._bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        # tqdm comes with huggingface_hub, whose import is slow and needed only on a terminal.
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
        """Close the bar of the current stage."""
        if self._bar is not None:
            self._bar.close()
        self._running, self._bar = "", None


def _counted(unit: str, *parts: int) -> str:
    """Return, for example, "100 of 250 tokens"; bytes are shown in MB."""
    numbers = [f"{count / 1e6:,.1f}" if unit == "bytes" else f"{count:,}" for count in parts]
    return f"{' of '.join(numbers)} {'MB' if unit == 'bytes' else unit}"


def duration(seconds: float) -> str:
    """Format seconds, for example "8 s" or "2 min 05 s"."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02} s"
