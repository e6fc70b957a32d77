"""Runs through ONNX Runtime's IO binding: batches of any shape from page-locked memory, or at fixed places.

`HostRun` is for any batch. `FixedRun` is for one shape whose arrays stay at the same places on the device, as
a CUDA graph wants them. Both are given the module onnxruntime and know nothing of texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx.page_locked import Array, PageLocked, padded_bytes

OUTPUT = "embedding"
_GRAPH_ID = "gpu_graph_id"
"""Run option that names a CUDA graph.
Source: onnxruntime_run_options_config_keys.h of https://github.com/microsoft/onnxruntime"""


class HostRun:
    """Runs batches from and into page-locked memory; safe to use from several threads.

    Args:
        ort: The module onnxruntime.
        memory: Where a batch's arrays are laid.
        dim: Width of an embedding.
    """

    def __init__(self, ort: Any, memory: PageLocked, dim: int) -> None:
        self._ort, self._memory, self._dim = ort, memory, dim

    def run(self, session: Any, feeds: Mapping[str, Array], texts: int) -> npt.NDArray[np.float32]:
        """The graph's float32[texts, dim]."""
        result_bytes = texts * self._dim * np.dtype(np.float32).itemsize
        needed = sum(padded_bytes(size) for size in (*(one.nbytes for one in feeds.values()), result_bytes))
        with self._memory.block(needed) as block:
            binding = session.io_binding()
            for name, array in feeds.items():
                binding.bind_cpu_input(name, block.copy_of(array))
            result = block.empty((texts, self._dim), np.float32)
            binding.bind_ortvalue_output(OUTPUT, self._ort.OrtValue.ortvalue_from_numpy(result))
            session.run_with_iobinding(binding)
            return result.copy()


class FixedRun:
    """One shape with its arrays at fixed places on a device.

    Args:
        ort: The module onnxruntime.
        session: The loaded graph.
        feeds: Inputs by name; later runs have the same shapes.
        shape: Of the result.
        device: Type and number, as ("cuda", 0).
        graph_id: Of the CUDA graph, above 0 and one for each shape.
    """

    def __init__(
        self,
        ort: Any,
        session: Any,
        feeds: Mapping[str, Array],
        shape: Sequence[int],
        device: tuple[str, int],
        graph_id: int,
    ) -> None:
        self._session = session
        self._values = {
            name: ort.OrtValue.ortvalue_from_numpy(array, *device) for name, array in feeds.items()
        }
        self._result = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *device)
        self._binding = session.io_binding()
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output(OUTPUT, self._result)
        self._options = ort.RunOptions()
        self._options.add_run_config_entry(_GRAPH_ID, str(graph_id))

    def run(self, feeds: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """Run with new values; the first time with a CUDA graph's id, ONNX Runtime captures it."""
        for name, array in feeds.items():
            self._values[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding, self._options)
        return np.array(self._result.numpy())
