"""Runs of one shape through ONNX Runtime's IO binding: its arrays keep their addresses on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
OUTPUT = "embedding"
_GRAPH_ID = "gpu_graph_id"
"""Run option that names a CUDA graph.
Source: onnxruntime_run_options_config_keys.h of https://github.com/microsoft/onnxruntime"""


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
