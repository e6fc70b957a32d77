"""The kernels' library, built from this clone (or named by KOE5_ONNX_KERNELS_LIBRARY), and one-node graphs for it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

onnx = pytest.importorskip("onnx", reason="graphs of the kernels' tests are made with onnx")

Array = npt.NDArray[Any]
ROOT = Path(__file__).parents[2]
LEVELS = ("avx512_vnni", "avx512_bf16", "amx")
_RUN_NODE = Path(__file__).with_name("run_node.py")
_TYPES = {"f32": onnx.TensorProto.FLOAT, "u8": onnx.TensorProto.UINT8, "s8": onnx.TensorProto.INT8}
_TYPES |= {"i32": onnx.TensorProto.INT32, "bf16": onnx.TensorProto.BFLOAT16}


def _built() -> Path:
    named = os.environ.get("KOE5_ONNX_KERNELS_LIBRARY")
    if named:
        return Path(named)
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    if cmake is None or ninja is None:
        pytest.skip(
            "the kernels are built with cmake and ninja: install both, and g++ 12 or clang 15 or later"
        )
    build = ROOT / "build" / "kernels"
    configure = [cmake, "-S", str(ROOT / "kernels"), "-B", str(build), "-G", "Ninja"]
    configured = subprocess.run(configure, capture_output=True, text=True, check=False)
    if configured.returncode != 0:
        pytest.skip(f"the kernels cannot be built here: {configured.stderr.strip()}")
    subprocess.run([cmake, "--build", str(build)], check=True, stdout=subprocess.DEVNULL)
    return build / "libkoe5_kernels.so"


@pytest.fixture(scope="session")
def library() -> Path:
    """The shared library; skipped with a reason where it cannot be built or used."""
    path = _built()
    loaded = ctypes.CDLL(str(path))
    loaded.koe5_kernels_unavailable.restype = ctypes.c_char_p
    reason = loaded.koe5_kernels_unavailable().decode()
    if reason:
        pytest.skip(f"the kernels cannot be used here: {reason}")
    return path


@pytest.fixture(scope="session")
def levels(library: Path) -> tuple[str, ...]:
    """The levels that this CPU has, lowest first."""
    loaded = ctypes.CDLL(str(library))
    loaded.koe5_kernels_level.restype = ctypes.c_char_p
    return LEVELS[: LEVELS.index(loaded.koe5_kernels_level().decode()) + 1]


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
    """A graph of one koe5 node named "node". bf16 tensors enter as uint16 arrays and leave as float32.

    Args:
        op: Name of the operator.
        inputs: Name to array, in the operator's order.
        outputs: Name to type ("f32", "u8", "bf16"), in the operator's order.
        attributes: The node's attributes.
        constants: Inputs that are initialisers and not fed.
    """
    nodes, fed, initialisers, names = [], [], [], []
    for name, array in inputs.items():
        names.append(name)
        if name in constants:
            initialisers.append(onnx.numpy_helper.from_array(array, name))
        elif array.dtype == np.uint16:
            # numpy has no bf16: the upper half of a float32 is made one by an exact cast.
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
    graph = onnx.helper.make_graph(nodes, "test", fed, results, initialisers)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("koe5", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def widened(bf16: Array) -> Array:
    """uint16 bits of bf16 to the float32 of the same values."""
    return (bf16.astype(np.uint32) << 16).view(np.float32)


def fed(inputs: Mapping[str, Array], constants: Sequence[str] = ()) -> dict[str, Array]:
    """What a session of `node_model` takes."""
    arrays = {name: array for name, array in inputs.items() if name not in constants}
    return {
        (f"{name}.f32" if array.dtype == np.uint16 else name): widened(array)
        if array.dtype == np.uint16
        else array
        for name, array in arrays.items()
    }


def open_session(library: Path, model: bytes, threads: int = 2) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.add_session_config_entry("koe5.threads", str(threads))
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Kernels:
    """Runs one-node graphs with the library in this process, at the level of this CPU."""

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
        model = node_model(op, inputs, outputs, attributes, constants)
        session = open_session(self.library, model, threads)
        return [np.asarray(result) for result in session.run(None, fed(inputs, constants))]


@pytest.fixture(scope="session")
def kernels(library: Path) -> Kernels:
    return Kernels(library)
