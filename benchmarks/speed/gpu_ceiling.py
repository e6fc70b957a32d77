"""A GPU's fp16 ceiling: the four linears of a layer as bare PyTorch products, at the best number of rows.

Tokens a second of an encoder that did nothing else: rows / (layers x seconds of the four).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.speed.gemm import Shape

GPU_ROWS = (4096, 16384, 65536)
CPU_ROWS = (64,)
_REPEATS, _WARM_UP = 9, 3


class GpuCeiling:
    """The products, ready to be timed in any round; on "cpu", which stands in for tests, in fp32.

    Args:
        shape: Of the encoder.
        device: "cuda", "cuda:N" or "cpu".
    """

    def __init__(self, shape: Shape, device: str) -> None:
        import torch

        self._torch, self._device, self._layers = torch, device, shape.layers
        self._rows = CPU_ROWS if device == "cpu" else GPU_ROWS
        dtype = torch.float32 if device == "cpu" else torch.float16
        random = torch.Generator(device).manual_seed(0)

        def make(*size: int) -> Any:
            # Random numbers, not zeros: those take less power, and clocks stay higher.
            return torch.randn(*size, generator=random, device=device, dtype=torch.float32).to(dtype)

        widest = max(self._rows)
        self._inputs = {k: make(widest, k) for k in {k for _, k, _ in shape.linears}}
        self._weights = [make(k, n) for _, k, n in shape.linears]

    def measure(self) -> Mapping[str, float]:
        """The best of all numbers of rows, in tokens a second now."""
        return {"fp16": max(rows / (self._layers * self._seconds(rows)) for rows in self._rows)}

    def _seconds(self, rows: int) -> float:
        """Median of one layer's products."""
        taken = []
        for number in range(_WARM_UP + _REPEATS):
            self._wait()
            start = time.perf_counter()
            for weight in self._weights:
                self._inputs[len(weight)][:rows] @ weight
            self._wait()
            if number >= _WARM_UP:
                taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def _wait(self) -> None:
        if self._device != "cpu":
            self._torch.cuda.synchronize(self._device)
