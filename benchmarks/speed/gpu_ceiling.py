"""Measure fp16 matrix multiplication alone on a GPU: the four products of an encoder layer in PyTorch.

The result, called the ceiling, is the tokens per second of an encoder that computes nothing else, with the
number of rows that is fastest: rows / (layers x time of the four products).
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
    """The products of one encoder layer, timed in each round. On "cpu", used in tests, they run in fp32.

    Args:
        shape: Shape of the encoder.
        device: "cuda", "cuda:N" or "cpu".
    """

    def __init__(self, shape: Shape, device: str) -> None:
        import torch

        self._torch, self._device, self._layers = torch, device, shape.layers
        self._rows = CPU_ROWS if device == "cpu" else GPU_ROWS
        dtype = torch.float32 if device == "cpu" else torch.float16
        random = torch.Generator(device).manual_seed(0)

        def make(*size: int) -> Any:
            # Random numbers, because zeros use less power and so allow higher clocks.
            return torch.randn(*size, generator=random, device=device, dtype=torch.float32).to(dtype)

        widest = max(self._rows)
        self._inputs = {k: make(widest, k) for k in {k for _, k, _ in shape.linears}}
        self._weights = [make(k, n) for _, k, n in shape.linears]

    def measure(self) -> Mapping[str, float]:
        """Return the tokens per second with the number of rows that is fastest, as "fp16"."""
        return {"fp16": max(rows / (self._layers * self._seconds(rows)) for rows in self._rows)}

    def _seconds(self, rows: int) -> float:
        """Return the median time of one layer's products."""
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
