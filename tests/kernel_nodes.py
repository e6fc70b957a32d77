"""Build and run graphs with one operator of the kernels, at the default level of this CPU or at a given one.

A level is an instruction set. A process selects it only once, so each given level runs in another process.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import tolerances

Array = npt.NDArray[Any]
LEVELS = (
    ("neon_dotprod", "neon_i8mm")
    if platform.machine() == "aarch64"
    else ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx")
)
"""Levels of this architecture, lowest first. A CPU may lack some that are below its best level."""
_TYPES = {"f32": onnx.TensorProto.FLOAT, "u8": onnx.TensorProto.UINT8, "s8": onnx.TensorProto.INT8}
_TYPES |= {"i32": onnx.TensorProto.INT32, "bf16": onnx.TensorProto.BFLOAT16}


def _value(name: str, kind: str, rank: int | None) -> Any:
    shape = None if rank is None else [None] * rank
    return onnx.helper.make_tensor_value_info(name, _TYPES[kind], shape)


def node_model(
    op: str,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, str],
    attributes: Mapping[str, Any],
    constants: Sequence[str] = (),
) -> bytes:
    """Return a graph of one koe5 node named "node". bf16 inputs are uint16 arrays, bf16 outputs are float32.

    Args:
        op: Name of the operator.
        inputs: Arrays by input name, in the operator's order.
        outputs: Types ("f32", "u8", "bf16") by output name, in the operator's order.
        attributes: The node's attributes.
        constants: Inputs that are initializers and not fed.
    """
    nodes, fed, initializers, names = [], [], [], []
    for name, array in inputs.items():
        names.append(name)
        if name in constants:
            initializers.append(onnx.numpy_helper.from_array(array, name))
        elif array.dtype == np.uint16:
            # numpy has no bf16, so convert exactly from float32 values whose lower half is zero.
            fed.append(_value(f"{name}.f32", "f32", array.ndim))
            nodes.append(onnx.helper.make_node("Cast", [f"{name}.f32"], [name], to=_TYPES["bf16"]))
        else:
            kind = {"float32": "f32", "uint8": "u8", "int8": "s8", "int32": "i32"}[array.dtype.name]
            fed.append(_value(name, kind, array.ndim))
    nodes.append(onnx.helper.make_node(op, names, list(outputs), name="node", domain="koe5", **attributes))
    results = []
    for name, kind in outputs.items():
        if kind == "bf16":
            nodes.append(onnx.helper.make_node("Cast", [name], [f"{name}.f32"], to=_TYPES["f32"]))
            results.append(_value(f"{name}.f32", "f32", None))
        else:
            results.append(_value(name, kind, None))
    graph = onnx.helper.make_graph(nodes, "test", fed, results, initializers)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("koe5", 4)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def rotated(x: Array) -> Array:
    """Rotate rows in float64 by the definition in rotation.h, as the operators do before rounding."""
    m = np.array([[1, 1, 1, -1], [1, -1, 1, 1], [1, 1, -1, 1], [-1, 1, 1, 1]])
    blocks = x.astype(np.float64).reshape(len(x), x.shape[1] // 64, 4, 4, 4)
    return np.asarray(np.einsum("ia,jb,kc,tnabc->tnjki", m, m, m, blocks) / 8).reshape(x.shape)


def assert_rounded(q: Array, scale: Array, values: Array, slack: Array | float) -> None:
    """Check that 127 * scale is a row's largest magnitude, and that values are rounded to the nearest step.

    Args:
        q: uint8[T, n].
        scale: float32[T].
        values: float64[T, n] that were rounded.
        slack: Maximum difference between the operator's values before rounding and `values`.
    """
    largest = np.maximum(np.abs(values).max(axis=1) / 127, 1e-12)
    of_row = np.broadcast_to(slack, values.shape).max(axis=1)
    assert (np.abs(scale - largest) <= of_row / 127 + tolerances.ROUNDED_TWICE * largest).all()
    found = (q.astype(np.float64) - 128) * scale[:, None].astype(np.float64)
    assert (np.abs(found - values) <= 0.5001 * scale[:, None] + slack).all()


def widened(bf16: Array) -> Array:
    """Convert uint16 bits of bf16 to float32."""
    return (bf16.astype(np.uint32) << 16).view(np.float32)


def fed(inputs: Mapping[str, Array], constants: Sequence[str] = ()) -> dict[str, Array]:
    """Return the inputs for a session of `node_model`."""
    arrays = {name: array for name, array in inputs.items() if name not in constants}
    return {
        (f"{name}.f32" if array.dtype == np.uint16 else name): widened(array)
        if array.dtype == np.uint16
        else array
        for name, array in arrays.items()
    }


def open_session(
    library: Path, model: bytes | str, threads: int = 2, packed_weights: Path | None = None
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    # Without the arena each tensor is a separate allocation, whose bounds AddressSanitizer checks.
    options.enable_cpu_mem_arena = os.environ.get("KOE5_ONNX_TESTS_ARENA") != "0"
    options.add_session_config_entry("koe5.threads", str(threads))
    if packed_weights is not None:
        options.add_session_config_entry("koe5.packed_weights", str(packed_weights))
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bf16(values: Array) -> Array:
    """Round float32 values to bf16 (nearest even) and return the bits as uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def python(code: str, folder: Path, **environment: str) -> str:
    """Return the output of a new interpreter, without ONNX Runtime's log."""
    command = [sys.executable, "-c", code]
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    env = os.environ | {"PYTHONPATH": path} | environment
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.strip()


class Kernels:
    """Runs one-node graphs with the library in this process, at the default level of this CPU."""

    def __init__(self, library: Path) -> None:
        self.library = library

    def run(
        self,
        op: str,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, str],
        attributes: Mapping[str, Any],
        constants: Sequence[str] = (),
        threads: int = 2,
    ) -> list[Array]:
        """Run the node and return its outputs. Arguments as for `node_model`."""
        model = node_model(op, inputs, outputs, attributes, constants)
        session = open_session(self.library, model, threads)
        return [np.asarray(result) for result in session.run(None, fed(inputs, constants))]


class KernelsAt(Kernels):
    """Runs one-node graphs in another process, at the level `level`."""

    def __init__(self, library: Path, level: str) -> None:
        super().__init__(library)
        context = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, context, initializer=_hold_to, initargs=(level,))

    def run(self, *args: Any, **kwargs: Any) -> list[Array]:
        return self._process.submit(Kernels(self.library).run, *args, **kwargs).result()

    def close(self) -> None:
        self._process.shutdown()


def _hold_to(level: str) -> None:
    os.environ["KOE5_ONNX_KERNELS_LEVEL"] = level
