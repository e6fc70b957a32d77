"""Times RaggedAttention, at each level of this CPU, next to ONNX Runtime's MultiHeadAttention.

python kernels/bench/attention.py LIBRARY [--threads 2] [--rounds 30]

Each level is a process of its own (a level is chosen once a process). There the two operators take turns; the
median and the least of each are printed in ms, with the ratio of the medians. With --threads 1 the calling
thread does all the work and its processor time is taken: other processes of the machine do not count in.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper

SHAPES = ((1, 512), (4, 128), (16, 32), (40, 12), (1, 12))
LEVELS = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx")
HEADS = 16
WIDTH = 1024


def session(library: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], threads: int) -> Any:
    """A graph of these nodes, opened with the kernels' library."""
    graph = helper.make_graph(nodes, "bench", inputs, outputs)
    opsets = [helper.make_opsetid(d, v) for d, v in (("", 21), ("koe5", 3), ("com.microsoft", 1))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("koe5.threads", str(threads))
    options.register_custom_ops_library(library)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def bound(made: Any, feeds: dict[str, ort.OrtValue]) -> Callable[[], None]:
    """A run of the session on tensors that stay where they are."""
    binding = made.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for output in made.get_outputs():
        binding.bind_output(output.name)
    return lambda: made.run_with_iobinding(binding)


def ours(library: str, qkv: npt.NDArray[np.float32], texts: int, threads: int) -> Callable[[], None]:
    """RaggedAttention of equally long texts."""
    inputs = [helper.make_tensor_value_info("qkv", TensorProto.BFLOAT16, [None] * 3)]
    inputs.append(helper.make_tensor_value_info("offsets", TensorProto.INT32, [None]))
    outputs = [helper.make_tensor_value_info("q", TensorProto.UINT8, None)]
    node = helper.make_node("RaggedAttention", ["qkv", "offsets"], ["q", "s"], domain="koe5")
    rows = (qkv.view(np.uint32) >> 16).astype(np.uint16)
    parts = np.ascontiguousarray(rows.reshape(len(rows), 3 * HEADS, -1).transpose(1, 0, 2))
    offsets = np.arange(texts + 1, dtype=np.int32) * (len(qkv) // texts)
    feeds = {
        "qkv": ort.OrtValue.ortvalue_from_numpy_with_onnx_type(parts, TensorProto.BFLOAT16),
        "offsets": ort.OrtValue.ortvalue_from_numpy(offsets),
    }
    return bound(session(library, [node], inputs, outputs, threads), feeds)


def stock(library: str, qkv: npt.NDArray[np.float32], texts: int, threads: int) -> Callable[[], None]:
    """MultiHeadAttention of the same texts, in fp32 as ONNX Runtime has it on CPUs."""
    names = ["query", "key", "value"]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 2 + [WIDTH]) for n in names]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    node = helper.make_node("MultiHeadAttention", names, ["y"], domain="com.microsoft", num_heads=HEADS)
    parts = [np.ascontiguousarray(p).reshape(texts, -1, WIDTH) for p in np.split(qkv, 3, axis=1)]
    feeds = {n: ort.OrtValue.ortvalue_from_numpy(p) for n, p in zip(names, parts, strict=True)}
    return bound(session(library, [node], inputs, outputs, threads), feeds)


def take_turns(
    sides: list[Callable[[], None]], rounds: int, clock: Callable[[], float]
) -> list[tuple[float, float]]:
    """Median and least time of each side, in ms, the first rounds apart."""
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds + 3):
        for run, taken in zip(sides, times, strict=True):
            start = clock()
            for _ in range(4):
                run()
            if turn >= 3:
                taken.append((clock() - start) / 4 * 1e3)
    return [(statistics.median(t), min(t)) for t in times]


def measure(library: str, threads: int, rounds: int) -> None:
    """Print the times of this process' level."""
    rng = np.random.default_rng(0)
    for texts, tokens in SHAPES:
        qkv = rng.normal(0, 1, (texts * tokens, 3 * WIDTH)).astype(np.float32)
        sides = [ours(library, qkv, texts, threads), stock(library, qkv, texts, threads)]
        mine, theirs = take_turns(sides, rounds, time.thread_time if threads == 1 else time.perf_counter)
        level = os.environ["KOE5_ONNX_KERNELS_LEVEL"]
        sys.stdout.write(
            f"{level:12} {texts:3} x {tokens:4} tokens  RaggedAttention {mine[0]:7.3f} ({mine[1]:.3f}) ms"
            f"  MultiHeadAttention {theirs[0]:7.3f} ({theirs[1]:.3f}) ms  {theirs[0] / mine[0]:5.2f}x\n"
        )
        sys.stdout.flush()


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("library")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--levels", nargs="+", default=list(LEVELS))
    args = parser.parse_args()
    if len(args.levels) == 1 and os.environ.get("KOE5_ONNX_KERNELS_LEVEL") == args.levels[0]:
        measure(args.library, args.threads, args.rounds)
        return
    for level in args.levels:
        again = [sys.executable, __file__, args.library, "--levels", level]
        again += ["--threads", str(args.threads), "--rounds", str(args.rounds)]
        env = os.environ | {"KOE5_ONNX_KERNELS_LEVEL": level}
        subprocess.run(again, check=True, env=env)


if __name__ == "__main__":
    main()
