"""Sessions of one linear layer with packed weights in a folder, in this process and in others.

This is not in a test file, because the other processes must import it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from kernel_nodes import fed, node_model, open_session

Array = npt.NDArray[Any]
WEIGHTS = {
    "ProjectQkv": ("weight_q", "weight_k", "weight_v", "scale_q", "scale_k", "scale_v"),
    "ProjectAddNorm": ("weight", "weight_scale"),
    "ProjectGelu": ("weight", "weight_scale"),
}
_OUTPUTS = {
    "ProjectQkv": {"qkv": "bf16"},
    "ProjectAddNorm": {"y": "f32", "q": "u8", "scale": "f32"},
    "ProjectGelu": {"q": "u8", "scale": "f32"},
}
_ATTRIBUTES: Mapping[str, dict[str, Any]] = {
    "ProjectQkv": {"heads": 3},
    "ProjectAddNorm": {"epsilon": 1e-5},
    "ProjectGelu": {},
}


def model_of(op: str, inputs: Mapping[str, Array]) -> bytes:
    """Return a graph of one node named "node"."""
    return node_model(op, inputs, _OUTPUTS[op], _ATTRIBUTES[op], WEIGHTS[op])


def _activations(rng: np.random.Generator, k: int) -> tuple[Array, Array]:
    return rng.integers(0, 256, (7, k), dtype=np.uint8), _row(rng, 7)


def _weight(rng: np.random.Generator, k: int, n: int) -> Array:
    return rng.integers(-128, 128, (k, n), dtype=np.int8)


def _row(rng: np.random.Generator, n: int) -> Array:
    return rng.uniform(0.5e-3, 2e-3, n).astype(np.float32)


def gelu_inputs(k: int = 48, n: int = 192, seed: int = 0) -> dict[str, Array]:
    """Return inputs of ProjectGelu."""
    rng = np.random.default_rng(seed)
    a, a_scale = _activations(rng, k)
    weight, scale, bias = _weight(rng, k, n), _row(rng, n), _row(rng, n)
    named = {"a": a, "a_scale": a_scale, "weight": weight, "weight_scale": scale, "bias": bias}
    return named | {"factors": rng.uniform(0.1, 10, 64).astype(np.float32)}


def add_norm_inputs() -> dict[str, Array]:
    """Return inputs of ProjectAddNorm."""
    rng = np.random.default_rng(0)
    named = gelu_inputs(80, 64)
    bias = named.pop("bias")
    del named["factors"]
    named |= {"x": rng.normal(size=(7, 64)).astype(np.float32), "skip": _row(rng, 64), "bias": bias}
    return named | {"gain": _row(rng, 64), "shift": _row(rng, 64)}


def qkv_inputs() -> dict[str, Array]:
    """Return inputs of ProjectQkv."""
    rng = np.random.default_rng(0)
    q, scale = _activations(rng, 48)
    weights = {name: _weight(rng, 48, 48) for name in WEIGHTS["ProjectQkv"][:3]}
    scales = {name: _row(rng, 48) for name in WEIGHTS["ProjectQkv"][3:]}
    return {"q": q, "scale": scale, **weights, **scales, "bias": _row(rng, 3 * 48)}


def wide_inputs() -> dict[str, Array]:
    """Return inputs of ProjectGelu with 4 MiB of weights, enough for concurrent starts to overlap."""
    return gelu_inputs(1024, 4096)


GELU = gelu_inputs()


class Sharing:
    """Opens one-node sessions with packed weights in a folder, or with a private copy if it is None."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self._problem = ctypes.CDLL(str(library)).koe5_kernels_sharing_problem
        self._problem.restype = ctypes.c_char_p

    def open(self, folder: Path | None, inputs: Mapping[str, Array] = GELU, op: str = "ProjectGelu") -> Any:
        return open_session(self.library, model_of(op, inputs), threads=1, packed_weights=folder)

    def run(
        self, folder: Path | None, inputs: Mapping[str, Array] = GELU, op: str = "ProjectGelu"
    ) -> list[Array]:
        return list(self.open(folder, inputs, op).run(None, fed(inputs, WEIGHTS[op])))

    def problem(self) -> str:
        return str(self._problem().decode())


def with_a_full_disk(library: Path, folder: Path) -> tuple[list[Array], str]:
    """Return the outputs and the sharing problem of a session while writes fail, as on a full disk.

    Limits the size of files in this process.
    """
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    sharing = Sharing(library)
    return sharing.run(folder), sharing.problem()


class Started:
    """A process that opens and runs a session after the barrier, and keeps it open until `end`."""

    def __init__(self, library: Path, folder: Path, barrier: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_hold_a_session, args=(library, folder, barrier, there))
        self._process.start()
        self.pid = self._process.pid

    def result(self) -> list[Array]:
        found: list[Array] = self._here.recv()
        return found

    def end(self) -> None:
        self._here.send(None)
        self._process.join()


def _hold_a_session(library: Path, folder: Path, barrier: Any, there: Any) -> None:
    wide = wide_inputs()
    sharing = Sharing(library)
    barrier.wait(60)
    session = sharing.open(folder, wide)
    there.send(session.run(None, fed(wide, WEIGHTS["ProjectGelu"])))
    there.recv()
