"""The machine's int8 ceiling: the four linears of a layer as bare products, at the best number of rows.

    stock   ONNX Runtime's MatMulInteger, 8-bit unsigned activations and signed weights
    fused   the linears of koe5-onnx-kernels, everything up to the next product included

Tokens a second of an encoder that did nothing else: 1 / (layers x sum of the linears' seconds a row).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx.graphs import installed_kernels
from koe5_onnx.session import import_onnxruntime

ROWS = (512, 1024)
_REPEATS = 5
Run = Callable[[], Any]
_Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Shape:
    """Of an encoder."""

    layers: int
    hidden: int
    intermediate: int

    @property
    def linears(self) -> tuple[tuple[str, int, int], ...]:
        """(our operator, inputs, outputs) of each linear of a layer; Q, K and V are one."""
        return (
            ("ProjectQkv", self.hidden, 3 * self.hidden),
            ("ProjectAddNorm", self.hidden, self.hidden),
            ("ProjectGelu", self.hidden, self.intermediate),
            ("ProjectAddNorm", self.intermediate, self.hidden),
        )

    @property
    def operations(self) -> int:
        """Of all linears a token; a product and a sum are two."""
        return 2 * self.layers * sum(k * n for _, k, n in self.linears)


class Ceiling:
    """The products, ready to be timed in any round.

    Args:
        shape: Of the encoder.
        threads: Of ONNX Runtime.
    """

    def __init__(self, shape: Shape, threads: int) -> None:
        self._shape = shape
        library = installed_kernels()
        self._kinds: dict[str, dict[int, list[Run]]] = {"stock": _runs(shape, threads, None)}
        if isinstance(library, Path):
            self._kinds["fused"] = _runs(shape, threads, library)

    def measure(self) -> Mapping[str, float]:
        """Kind to tokens a second now."""
        return {kind: max(map(self._rate, runs, runs.values())) for kind, runs in self._kinds.items()}

    def _rate(self, rows: int, runs: list[Run]) -> float:
        return rows / (self._shape.layers * sum(map(_seconds, runs)))


def _seconds(run: Run) -> float:
    """Median of some runs after one that does not count."""
    run()
    taken = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _runs(shape: Shape, threads: int, library: Path | None) -> dict[int, list[Run]]:
    random = np.random.default_rng(0)
    sessions = [_session(random, linear, threads, library) for linear in shape.linears]
    return {
        rows: [
            _bound(session, random, rows, linear)
            for session, linear in zip(sessions, shape.linears, strict=True)
        ]
        for rows in ROWS
    }


def _bound(session: Any, random: np.random.Generator, rows: int, linear: tuple[str, int, int]) -> Run:
    """A run on tensors that stay where they are."""
    _, k, n = linear
    ort = import_onnxruntime()
    arrays = {
        "a": random.integers(0, 256, (rows, k), dtype=np.uint8),
        "a_scale": np.full(rows, 0.001, np.float32),
        "x": np.zeros((rows, n), np.float32),
    }
    binding = session.io_binding()
    for wanted in session.get_inputs():
        binding.bind_ortvalue_input(wanted.name, ort.OrtValue.ortvalue_from_numpy(arrays[wanted.name]))
    for result in session.get_outputs():
        binding.bind_output(result.name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def _session(
    random: np.random.Generator, linear: tuple[str, int, int], threads: int, library: Path | None
) -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if library is not None:
        options.add_session_config_entry("koe5.threads", str(threads))
        options.register_custom_ops_library(str(library))
    model = _stock(random, linear) if library is None else _fused(random, linear)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _stock(random: np.random.Generator, linear: tuple[str, int, int]) -> bytes:
    _, k, n = linear
    inputs = {
        "a": np.zeros((1, k), np.uint8),
        "weight": random.integers(-127, 128, (k, n), dtype=np.int8),
        "zero": np.array(128, np.uint8),
    }
    return _model(("", "MatMulInteger"), inputs, ["a"], ["y"], {})


def _fused(random: np.random.Generator, linear: tuple[str, int, int]) -> bytes:
    name, k, n = linear
    row = np.full(n, 0.01, np.float32)
    inputs: _Arrays = {"a": np.zeros((1, k), np.uint8), "a_scale": np.zeros(1, np.float32)}
    parts = 3 if name == "ProjectQkv" else 1
    for part in range(parts):
        inputs[f"weight{part}"] = random.integers(-127, 128, (k, n // parts), dtype=np.int8)
    inputs |= {f"weight_scale{part}": np.full(n // parts, 0.01, np.float32) for part in range(parts)}
    attributes: dict[str, Any] = {} if name == "ProjectQkv" else {"zero_point": 27}
    if name == "ProjectAddNorm":
        attributes["epsilon"] = 1e-5
        inputs |= {"x": np.zeros((1, n), np.float32), "skip": row, "bias": row, "gain": row, "shift": row}
        return _model(("koe5", name), inputs, ["a", "a_scale", "x"], ["y", "q", "s"], attributes)
    outputs = ["y"] if name == "ProjectQkv" else ["q", "s"]
    return _model(("koe5", name), inputs | {"bias": row}, ["a", "a_scale"], outputs, attributes)


def _model(
    op: tuple[str, str], inputs: _Arrays, fed: list[str], outputs: list[str], attributes: dict[str, Any]
) -> bytes:
    """A graph of one node; what is not fed is constant."""
    from onnx import TensorProto, helper, numpy_helper

    types = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8}
    node = helper.make_node(op[1], list(inputs), outputs, domain=op[0], **attributes)
    infos = [
        helper.make_tensor_value_info(name, types[inputs[name].dtype.name], [None] * inputs[name].ndim)
        for name in fed
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    constants = [numpy_helper.from_array(array, name) for name, array in inputs.items() if name not in fed]
    graph = helper.make_graph([node], "ceiling", infos, results, constants)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), ("koe5", 1))]
    found: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return found
