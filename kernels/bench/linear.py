"""Times the fused linears at each level of this CPU, next to ONNX Runtime's MatMulIntegerToFloat.

python kernels/bench/linear.py LIBRARY [--threads 2] [--rounds 30]

ONNX Runtime's operator does the product and the scale of the columns; ours does that and everything up to the
next product: bias, rounding to bf16, or GELU and 8 bits, or residual, layer norm and 8 bits. Each level is a
process of its own (a level is chosen once a process). There the two take turns on eight weights each, so that
no weight is still in a core's own cache; printed are the medians in ms, giga-operations a second (a product
and a sum are two) and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
SHAPES = (
    ("ProjectQkv", 1024, 3072),
    ("ProjectAddNorm", 1024, 1024),
    ("ProjectGelu", 1024, 4096),
    ("ProjectAddNorm", 4096, 1024),
)
ROWS = (16, 32, 48, 128, 512, 2048)
LEVELS = ("avx2", "avx_vnni", "avx512_vnni", "amx")
WEIGHTS = 8
TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8}


def session(
    library: str,
    op: tuple[str, str],
    inputs: dict[str, Array],
    fed: Sequence[str],
    outputs: Sequence[str],
    n: int,
) -> ort.InferenceSession:
    """A graph of one node; what is not fed is constant."""
    attributes: dict[str, Any] = {}
    if op[1] == "ProjectAddNorm":
        attributes["epsilon"] = 1e-5
    if op[1] == "ProjectQkv":
        attributes["heads"] = 16
    node = helper.make_node(op[1], list(inputs), list(outputs), domain=op[0], **attributes)
    infos = [
        helper.make_tensor_value_info(name, TYPES[inputs[name].dtype.name], [None] * inputs[name].ndim)
        for name in fed
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    constants = [numpy_helper.from_array(a, name) for name, a in inputs.items() if name not in fed]
    graph = helper.make_graph([node], "bench", infos, results, constants)
    opsets = [helper.make_opsetid(d, v) for d, v in (("", 21), ("koe5", 3), ("com.microsoft", 1))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = n
    options.add_session_config_entry("koe5.threads", str(n))
    options.register_custom_ops_library(library)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def stock(rng: np.random.Generator, library: str, k: int, n: int, threads: int) -> ort.InferenceSession:
    """ONNX Runtime's own product."""
    inputs: dict[str, Array] = {
        "a": np.zeros((1, k), np.uint8),
        "weight": rng.integers(-127, 128, (k, n), dtype=np.int8),
        "one": np.ones((), np.float32),
        "scale": np.full(n, 0.01, np.float32),
        "zero": np.array(128, np.uint8),
    }
    op = ("com.microsoft", "MatMulIntegerToFloat")
    return session(library, op, inputs, ["a"], ["y"], threads)


def fused(
    rng: np.random.Generator, library: str, name: str, k: int, n: int, threads: int
) -> ort.InferenceSession:
    """Our linear of that shape."""
    row = np.full(n, 0.01, np.float32)
    inputs: dict[str, Array] = {"a": np.zeros((1, k), np.uint8), "a_scale": np.zeros(1, np.float32)}
    parts = 3 if name == "ProjectQkv" else 1
    for i in range(parts):
        inputs[f"weight{i}"] = rng.integers(-127, 128, (k, n // parts), dtype=np.int8)
    inputs |= {f"weight_scale{i}": np.full(n // parts, 0.01, np.float32) for i in range(parts)}
    if name == "ProjectAddNorm":
        inputs |= {"x": np.zeros((1, n), np.float32), "skip": row, "bias": row, "gain": row, "shift": row}
        return session(library, ("koe5", name), inputs, ["a", "a_scale", "x"], ["y", "q", "s"], threads)
    outputs = ["y"] if name == "ProjectQkv" else ["q", "s"]
    return session(library, ("koe5", name), inputs | {"bias": row}, ["a", "a_scale"], outputs, threads)


def feeds(rng: np.random.Generator, rows: int, k: int, n: int) -> dict[str, ort.OrtValue]:
    """Inputs of either side."""
    arrays = {
        "a": rng.integers(0, 256, (rows, k), dtype=np.uint8),
        "a_scale": np.full(rows, 0.001, np.float32),
        "x": rng.normal(size=(rows, n)).astype(np.float32),
    }
    return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}


class Side:
    """Sessions that differ in their weights alone, used in turn."""

    def __init__(self, sessions: list[ort.InferenceSession], inputs: dict[str, ort.OrtValue]) -> None:
        self.sessions = sessions
        self.bindings = []
        self.turn = 0
        for each in sessions:
            binding = each.io_binding()
            for wanted in each.get_inputs():
                binding.bind_ortvalue_input(wanted.name, inputs[wanted.name])
            for result in each.get_outputs():
                binding.bind_output(result.name, "cpu")
            self.bindings.append(binding)

    def time_ms(self) -> float:
        """One run with the next weights."""
        self.turn = (self.turn + 1) % len(self.sessions)
        start = time.perf_counter()
        self.sessions[self.turn].run_with_iobinding(self.bindings[self.turn])
        return (time.perf_counter() - start) * 1e3


def measure(library: str, level: str, threads: int, rounds: int) -> None:
    """Prints a line a shape and number of rows."""
    rng = np.random.default_rng(0)
    for name, k, n in SHAPES:
        ours = [fused(rng, library, name, k, n, threads) for _ in range(WEIGHTS)]
        theirs = [stock(rng, library, k, n, threads) for _ in range(WEIGHTS)]
        for rows in ROWS:
            inputs = feeds(rng, rows, k, n)
            sides = [Side(ours, inputs), Side(theirs, inputs)]
            for side in sides:
                side.time_ms()
            pairs = [[side.time_ms() for side in sides] for _ in range(rounds)]
            ms, stock_ms = (statistics.median(times) for times in zip(*pairs, strict=True))
            operations = 2e-6 * rows * k * n
            sys.stdout.write(
                f"{name:14} {k:4} -> {n:4} {level:11} rows {rows:4}: {ms:7.3f} ms "
                f"{operations / ms:5.0f} GOP/s; MatMulIntegerToFloat {stock_ms:7.3f} ms "
                f"{operations / stock_ms:5.0f} GOP/s; {stock_ms / ms:.2f} times as fast\n"
            )
            sys.stdout.flush()


def main() -> None:
    """One process a level."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--level", choices=LEVELS, help="this level only, in this process")
    arguments = parser.parse_args()
    if arguments.level is not None:
        measure(arguments.library, arguments.level, arguments.threads, arguments.rounds)
        return
    for level in LEVELS:
        environment = os.environ | {"KOE5_ONNX_KERNELS_LEVEL": level}
        subprocess.run([sys.executable, *sys.argv, "--level", level], env=environment, check=True)


if __name__ == "__main__":
    main()
