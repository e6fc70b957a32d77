"""Run a session with fixed shapes and fixed device addresses through ONNX Runtime's IO binding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx.engine.graphs import OUTPUT

Array = npt.NDArray[Any]
_GRAPH_ID = "gpu_graph_id"
"""Run option that identifies a CUDA graph.
Source: onnxruntime_run_options_config_keys.h of https://github.com/microsoft/onnxruntime"""


class FixedRun:
    """Session with inputs and an output of fixed shapes at fixed device addresses.

    Args:
        ort: The onnxruntime module.
        session: Loaded ONNX Runtime session.
        feeds: Inputs by name, which determine shapes and dtypes.
        shape: Shape of the output, which is float32.
        device: Device type and index, such as ("cuda", 0).
        graph_id: Id of the CUDA graph: positive and unique per shape.
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
        """Run with new inputs and return a copy of the output. The first run captures the CUDA graph."""
        for name, array in feeds.items():
            self._values[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding, self._options)
        return np.array(self._result.numpy())
