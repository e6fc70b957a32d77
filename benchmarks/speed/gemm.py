"""Measure int8 matrix multiplication alone: the four products of an encoder layer.

    stock   ONNX Runtime's MatMulInteger, with unsigned activations and signed weights
    fused   the linear operators of koe5-onnx-kernels, including the operations that they fuse

The result, called the ceiling, is the tokens per second of an encoder that computes nothing else, with the
number of rows that is fastest: rows / (layers x time of the four products). All four products are in one
graph. With one session per product, the threads of one session would spin after a run and occupy the cores
while the next session runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx.engine.graphs import installed_kernels
from koe5_onnx.engine.providers import import_onnxruntime

ROWS = (256, 512, 1024)
_REPEATS = 9
SETTLE_SECONDS = 0.3
"""Time after which the threads of a session no longer spin."""
Run = Callable[[], Any]
_Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Shape:
    """Shape of an encoder."""

    layers: int
    hidden: int
    intermediate: int

    @property
    def linears(self) -> tuple[tuple[str, int, int], ...]:
        """(operator, inputs, outputs) of each linear layer in an encoder layer; Q, K and V are one."""
        return (
            ("ProjectQkv", self.hidden, 3 * self.hidden),
            ("ProjectAddNorm", self.hidden, self.hidden),
            ("ProjectGelu", self.hidden, self.intermediate),
            ("ProjectAddNorm", self.intermediate, self.hidden),
        )

    @property
    def operations(self) -> int:
        """Operations per token of all linear layers; a product and a sum count as two."""
        return 2 * self.layers * sum(k * n for _, k, n in self.linears)


class Ceiling:
    """The products of one encoder layer, opened once and timed in each round.

    Args:
        shape: Shape of the encoder.
        threads: Number of ONNX Runtime threads.
    """

    def __init__(self, shape: Shape, threads: int) -> None:
        self._layers = shape.layers
        library = installed_kernels()
        self._kinds = {"stock": _runs(shape, threads, None)}
        if isinstance(library, Path):
            self._kinds["fused"] = _runs(shape, threads, library)

    def measure(self) -> Mapping[str, float]:
        """Return the tokens per second, by "stock" and, if the kernels are installed, "fused"."""
        return {kind: self._best(runs) for kind, runs in self._kinds.items()}

    def _best(self, runs: Mapping[int, Run]) -> float:
        """Return the best rate over all row counts. Before and after, wait until no threads spin."""
        time.sleep(SETTLE_SECONDS)
        rate = max(rows / (self._layers * _seconds(run)) for rows, run in runs.items())
        time.sleep(SETTLE_SECONDS)
        return rate


def _seconds(run: Run) -> float:
    """Return the median time of several runs after a warm-up run."""
    run()
    taken = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _runs(shape: Shape, threads: int, library: Path | None) -> dict[int, Run]:
    """Return, by number of rows, a function that runs the four products on fixed tensors."""
    random = np.random.default_rng(0)
    make = _stock if library is None else _fused
    products = [make(random, linear) for linear in shape.linears]
    session = _session(_model(products), threads, library)
    return {rows: _bound(session, products, rows) for rows in ROWS}


def _bound(session: Any, products: Sequence[Product], rows: int) -> Run:
    ort = import_onnxruntime()
    binding = session.io_binding()
    for number, product in enumerate(products):
        for name in product.fed:
            one = product.inputs[name]
            array = np.resize(one, (rows, *one.shape[1:]))
            binding.bind_ortvalue_input(f"{name}_{number}", ort.OrtValue.ortvalue_from_numpy(array))
    for result in session.get_outputs():
        binding.bind_output(result.name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def _session(model: bytes, threads: int, library: Path | None) -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if library is not None:
        options.add_session_config_entry("koe5.threads", str(threads))
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Product:
    """One node: an operator with its inputs and outputs."""

    op: tuple[str, str]
    """Domain and name."""
    inputs: _Arrays
    """Inputs by name. Those in `fed` have one row here, which is repeated."""
    fed: tuple[str, ...]
    """Names of the inputs that are passed at each run; the others are constants."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


def _stock(random: np.random.Generator, linear: tuple[str, int, int]) -> Product:
    _, k, n = linear
    inputs: _Arrays = {
        "a": random.integers(0, 256, (1, k), dtype=np.uint8),
        "weight": random.integers(-127, 128, (k, n), dtype=np.int8),
        "zero": np.array(128, np.uint8),
    }
    return Product(("", "MatMulInteger"), inputs, ("a",), ("y",), {})


def _fused(random: np.random.Generator, linear: tuple[str, int, int]) -> Product:
    name, k, n = linear
    row = np.full(n, 0.01, np.float32)
    inputs: _Arrays = {
        "a": random.integers(0, 256, (1, k), dtype=np.uint8),
        "a_scale": np.full(1, 0.001, np.float32),
    }
    parts = 3 if name == "ProjectQkv" else 1
    for part in range(parts):
        inputs[f"weight{part}"] = random.integers(-127, 128, (k, n // parts), dtype=np.int8)
    inputs |= {f"weight_scale{part}": np.full(n // parts, 0.01, np.float32) for part in range(parts)}
    if name == "ProjectAddNorm":
        inputs |= {"x": np.zeros((1, n), np.float32), "skip": row, "bias": row, "gain": row, "shift": row}
        attributes = {"epsilon": 1e-5}
        return Product(("koe5", name), inputs, ("a", "a_scale", "x"), ("y", "q", "s"), attributes)
    inputs["bias"] = row
    if name == "ProjectQkv":
        return Product(
            ("koe5", name), inputs, ("a", "a_scale"), ("y",), {"heads": k // (64 if k % 64 == 0 else 16)}
        )
    inputs["factors"] = np.ones(64, np.float32)
    return Product(("koe5", name), inputs, ("a", "a_scale"), ("q", "s"), {})


def _model(products: Sequence[Product]) -> bytes:
    """Return a model of independent nodes. The name of each tensor ends with the number of its node."""
    from onnx import TensorProto, helper, numpy_helper

    types = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
    nodes, fed, results, constants = [], [], [], []
    for number, product in enumerate(products):
        inputs, outputs = (
            [f"{name}_{number}" for name in some] for some in (product.inputs, product.outputs)
        )
        domain, op = product.op
        nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **product.attributes))
        results += [helper.make_empty_tensor_value_info(name) for name in outputs]
        for name, array in product.inputs.items():
            if name in product.fed:
                shape = [None, *array.shape[1:]]
                fed.append(helper.make_tensor_value_info(f"{name}_{number}", types[array.dtype.name], shape))
            else:
                constants.append(numpy_helper.from_array(array, f"{name}_{number}"))
    graph = helper.make_graph(nodes, "ceiling", fed, results, constants)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), ("koe5", 4))]
    found: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return found
